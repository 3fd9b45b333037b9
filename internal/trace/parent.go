package trace

import (
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// parent is what a traceparent header says.
type parent struct {
	trace trace.TraceID
	span  trace.SpanID
	flags trace.TraceFlags
}

// known are the flags that have a meaning; a header may not pass others on.
const known = trace.FlagsSampled | trace.FlagsRandom

// parseParent reads the values of traceparent headers: exactly one, and valid. A
// version that is still to come is read as far as version 00 goes.
// Source: https://www.w3.org/TR/trace-context/#traceparent-header.
func parseParent(values []string) (p parent, ok bool) {
	const size = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if len(values) != 1 || len(values[0]) < size {
		return p, false
	}
	v := values[0]
	var version, flags [1]byte
	ok = unhex(version[:], v[:2]) && v[2] == '-' && unhex(p.trace[:], v[3:35]) && v[35] == '-' &&
		unhex(p.span[:], v[36:52]) && v[52] == '-' && unhex(flags[:], v[53:size]) &&
		p.trace.IsValid() && p.span.IsValid()
	if len(v) > size {
		ok = ok && version[0] != 0 && v[size] == '-'
	}
	if !ok || version[0] == 0xff {
		return parent{}, false
	}
	p.flags = trace.TraceFlags(flags[0]) & known
	return p, true
}

// unhex refuses the capitals that hex.Decode takes.
func unhex(dst []byte, s string) bool {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

// String is the header's value, of version 00.
func (p parent) String() string {
	b := make([]byte, 0, 55)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, p.trace[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, p.span[:])
	b = append(b, '-')
	return string(hex.AppendEncode(b, []byte{byte(p.flags)}))
}
