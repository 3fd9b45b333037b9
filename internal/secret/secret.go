// Package secret holds provider keys, client tokens and other values that must
// never be printed. It is a leaf that any package may import: keypool, auth,
// provider and config all carry secrets, and each would otherwise need its own
// redacting type. It does not encrypt, and it does not wipe memory.
package secret

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
)

// Redacted is what every printed or encoded form of a Value shows.
const Redacted = "[redacted]"

// Value is a secret string that prints and encodes as [Redacted] under every
// fmt verb and every text, JSON and YAML encoder. The zero Value is the empty
// secret. Values are immutable and safe for concurrent use.
type Value struct {
	// A pointer, because fmt calls no method of a value that it finds in an
	// unexported field of somebody else's struct: it then prints what is in
	// here, and of a pointer it prints the address.
	s *string
}

// New wraps s.
func New(s string) Value { return Value{s: &s} }

// Reveal returns the secret itself. Call it only where the value leaves the
// process on purpose: a request's credential header, or a hash.
func (v Value) Reveal() string {
	if v.s == nil {
		return ""
	}
	return *v.s
}

// IsZero reports whether the secret is empty.
func (v Value) IsZero() bool { return v.Reveal() == "" }

// Fingerprint is the first 12 hexadecimal digits of the secret's SHA-256: enough
// to tell keys apart in logs and statistics, useless for finding the secret.
func (v Value) Fingerprint() string {
	sum := sha256.Sum256([]byte(v.Reveal()))
	return hex.EncodeToString(sum[:6])
}

// String implements fmt.Stringer.
func (Value) String() string { return Redacted }

// GoString implements fmt.GoStringer.
func (Value) GoString() string { return Redacted }

// Format implements fmt.Formatter, so that no verb or flag shows the secret.
func (Value) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }

// MarshalText implements encoding.TextMarshaler, which JSON, YAML and TOML encoders use.
func (Value) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// UnmarshalText implements encoding.TextUnmarshaler: configuration files are read into Values.
func (v *Value) UnmarshalText(text []byte) error {
	*v = New(string(text))
	return nil
}
