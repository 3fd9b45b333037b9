package config_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

func TestStatePath(t *testing.T) {
	for name, tc := range map[string]struct {
		server    config.Server
		home, xdg string
		want      string
	}{
		"in the home":            {config.Server{State: "on"}, "/home/me", "", "/home/me/.local/state/cc-relay"},
		"where XDG says":         {config.Server{State: "on"}, "/home/me", "/var/xdg", "/var/xdg/cc-relay"},
		"XDG without a home":     {config.Server{State: "on"}, "", "/var/xdg", "/var/xdg/cc-relay"},
		"XDG that is relative":   {config.Server{State: "on"}, "/home/me", "xdg", "/home/me/.local/state/cc-relay"},
		"configured":             {config.Server{State: "on", StateDir: "/var/lib/relay"}, "", "/var/xdg", "/var/lib/relay"},
		"off":                    {config.Server{State: "off"}, "/home/me", "/var/xdg", ""},
		"off, and configured":    {config.Server{State: "off", StateDir: "/var/lib/relay"}, "/home/me", "", ""},
		"of a server by default": {config.Default().Server, "/home/me", "", "/home/me/.local/state/cc-relay"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HOME", tc.home)
			t.Setenv("XDG_STATE_HOME", tc.xdg)
			got, err := tc.server.StatePath()
			require.NoError(t, err)
			assert.Equal(t, filepath.FromSlash(tc.want), got)
		})
	}
}

func TestStatePathWithoutAHome(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "")
	for _, home := range []string{"", "relative"} {
		t.Setenv("HOME", home)
		_, err := config.Default().Server.StatePath()
		assert.EqualError(t, err, "no directory for the relay's state: set server.state_dir, or server.state: off")
	}
}
