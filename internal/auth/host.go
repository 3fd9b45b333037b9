package auth

import (
	"net"
	"net/netip"
	"strings"
)

// Hosts are the names by which a listener may be asked for. A page of another site
// whose name has been made to lead to this machine (DNS rebinding) comes with its own
// name in the Host header, and is refused; no name can be made to look like an IP
// address or like localhost, so these always pass. The zero value allows only them.
// It is safe for concurrent use.
type Hosts struct{ names map[string]bool }

// NewHosts returns the hosts of the given names, without ports, in any case.
func NewHosts(names []string) Hosts {
	h := Hosts{names: make(map[string]bool, len(names))}
	for _, n := range names {
		h.names[strings.ToLower(strings.TrimSuffix(n, "."))] = true
	}
	return h
}

// Allow reports whether a request with this Host header, with or without a port, is
// meant for the listener. An empty one is not.
func (h Hosts) Allow(host string) bool {
	if _, err := netip.ParseAddrPort(host); err == nil { // most, at no cost
		return true
	}
	name := host
	if n, _, err := net.SplitHostPort(host); err == nil {
		name = n
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name == "localhost" || h.names[name]
}
