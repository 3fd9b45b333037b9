package auth_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/auth"
)

func TestHosts(t *testing.T) {
	hosts := auth.NewHosts([]string{"relay.example.com", "Relay", "dotted.example."})
	for host, want := range map[string]bool{
		"127.0.0.1:8787": true, "127.0.0.1": true, "10.1.2.3:80": true, "[::1]:8787": true, "[::1]": true, "::1": true,
		"[fe80::1%25eth0]:80": true,
		"localhost":           true, "LOCALHOST:8787": true, "localhost.": true,
		"relay.example.com": true, "RELAY.example.com.:8787": true, "relay": true, "dotted.example": true,
		"": false, ":8787": false, "evil.example": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false,
		"sub.relay.example.com": false, "2130706433": false, "0x7f.1": false, "relay.example.com@evil.example": false,
	} {
		assert.Equal(t, want, hosts.Allow(host), host)
	}
	assert.True(t, auth.Hosts{}.Allow("localhost:1"))
	assert.False(t, auth.Hosts{}.Allow("relay"))
}
