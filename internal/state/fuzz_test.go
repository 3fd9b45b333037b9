package state_test

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/state"
)

// FuzzFile checks that what is saved is loaded again, that a file with any one
// byte changed or cut off at any place is set aside, and that then nothing is loaded.
func FuzzFile(f *testing.F) {
	f.Add("pools", uint64(1), []byte("raw"), uint(0), byte(1), false)
	f.Add("<&>\u2028\xff\"", uint64(1<<64-1), []byte(nil), uint(20), byte(0x20), false)
	f.Add("", uint64(0), []byte{0}, uint(60), byte(0xff), true)
	f.Add("{\"file\"", uint64(9), make([]byte, 300), uint(1<<31), byte(4), true)
	d := newDir(f)
	f.Fuzz(func(t *testing.T, name string, count uint64, raw []byte, pos uint, flip byte, cut bool) {
		v := kept{Name: name, Count: count, Raw: raw, Of: map[string]string{"n": "1"}}
		require.NoError(t, d.Save("pools", 7, v))
		var got kept
		require.NoError(t, d.Load("pools", 7, &got))
		if !utf8.ValidString(name) { // JSON cannot hold it
			v.Name = got.Name
		}
		if len(raw) == 0 {
			v.Raw = got.Raw
		}
		require.Equal(t, v, got)
		require.Len(t, got.Raw, len(raw))

		spoilt := []byte(read(t, at(d, "pools")))
		i := pos % uint(len(spoilt))
		switch {
		case cut:
			spoilt = spoilt[:i]
		case flip == 0:
			return
		default:
			spoilt[i] ^= flip
		}
		require.NoError(t, os.WriteFile(at(d, "pools"), spoilt, 0o600))
		loaded := kept{Name: "untouched"}
		var aside *state.SetAsideError
		require.ErrorAs(t, d.Load("pools", 7, &loaded), &aside, "%q", spoilt)
		assert.Equal(t, kept{Name: "untouched"}, loaded)
		assert.Equal(t, string(spoilt), read(t, aside.Kept))
	})
}

// FuzzLoad checks that of a file in which anything may stand nothing is loaded but what
// Save has written, byte for byte; anything else is set aside as it was, and the next
// Save and Load work.
func FuzzLoad(f *testing.F) {
	d := newDir(f)
	require.NoError(f, d.Save("pools", 7, kept{Name: "n"}))
	sound := read(f, at(d, "pools"))
	for _, seed := range []string{sound, sound + "\n", sound[1:], sound[:len(sound)-1], "", "{}", "null\n", "\x00", strings.Replace(sound, "7", "8", 1), strings.Replace(sound, "pools", "pOols", 1)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		require.NoError(t, os.WriteFile(at(d, "pools"), file, 0o600))
		got := kept{Name: "untouched"}
		if err := d.Load("pools", 7, &got); err == nil {
			require.NoError(t, d.Save("pools", 7, got))
			require.Equal(t, string(file), read(t, at(d, "pools")), "loaded, but Save writes it otherwise")
		} else {
			var aside *state.SetAsideError
			require.ErrorAs(t, err, &aside)
			require.Equal(t, kept{Name: "untouched"}, got)
			require.Equal(t, string(file), read(t, aside.Kept))
		}
		require.NoError(t, d.Save("pools", 7, kept{Name: "next"}))
		require.NoError(t, d.Load("pools", 7, &got))
		require.Equal(t, "next", got.Name)
	})
}
