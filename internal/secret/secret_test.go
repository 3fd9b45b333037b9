package secret_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/secret"
)

const canary = "sk-ant-api03-canary-0123456789"

type holder struct {
	Public secret.Value
	hidden secret.Value
	Ptr    *secret.Value
	Map    map[string]secret.Value
}

func TestNoVerbOrEncoderShowsASecret(t *testing.T) {
	v := secret.New(canary)
	h := holder{Public: v, hidden: v, Ptr: &v, Map: map[string]secret.Value{"k": v}}
	_ = h.hidden
	var out bytes.Buffer

	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%U", "%c", "%08.3f", "%T"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+"\n", v, &v, h)
	}
	fmt.Fprintln(&out, v, &v, h, fmt.Errorf("wrapped: %v", v))

	require.NoError(t, json.NewEncoder(&out).Encode(h))
	y, err := yaml.Marshal(h)
	require.NoError(t, err)
	out.Write(y)
	require.NoError(t, xml.NewEncoder(&out).Encode(v))
	_ = gob.NewEncoder(&out).Encode(v)

	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v, "h", h)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v, "h", h)
	z := zerolog.New(&out)
	z.Info().Interface("v", v).Interface("h", h).Stringer("s", v).Any("a", &v).Msg("x")
	func() {
		defer func() { fmt.Fprint(&out, recover()) }()
		panic(v)
	}()

	assert.NotContains(t, out.String(), canary)
	assert.NotContains(t, out.String(), fmt.Sprintf("%x", canary))
	assert.Contains(t, out.String(), secret.Redacted)
}

func TestTheTestFindsAPlantedSecret(t *testing.T) {
	type leaky string
	assert.Contains(t, fmt.Sprintf("%#v", leaky(canary)), canary)
}

func TestRevealAndFingerprint(t *testing.T) {
	v := secret.New(canary)
	assert.Equal(t, canary, v.Reveal())
	assert.Equal(t, secret.New(canary).Fingerprint(), v.Fingerprint())
	assert.Len(t, v.Fingerprint(), 12)
	assert.NotEqual(t, secret.New("other").Fingerprint(), v.Fingerprint())
	assert.True(t, secret.Value{}.IsZero())

	var decoded struct{ K secret.Value }
	require.NoError(t, json.Unmarshal([]byte(`{"K":"`+canary+`"}`), &decoded))
	assert.Equal(t, canary, decoded.K.Reveal())
}
