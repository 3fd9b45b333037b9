package provider

import (
	"net/http"
	"strings"
)

// forwarded are the request headers that pass besides the open families. The
// client's credentials, cookies and forwarding headers are not among them;
// content length, host and encoding are written anew.
var forwarded = map[string]bool{
	"Accept":       true,
	"Content-Type": true,
	"User-Agent":   true,
	"X-App":        true,
}

// families are open: new members pass without the relay knowing them. Which
// anthropic-version and which betas to send is the client's choice alone.
var families = []string{"Anthropic-", "X-Claude-Code-", "X-Stainless-"}

// ForwardHeaders adds to dst the client's headers that an upstream may see.
// Values are shared with src, not copied. A Connection header of the client
// cannot take anything away: hop-by-hop headers are not forwarded anyway.
func ForwardHeaders(dst, src http.Header) {
	for name, values := range src {
		if forwarded[name] || inFamily(name) {
			dst[name] = values
		}
	}
	if _, ok := dst["User-Agent"]; !ok {
		dst["User-Agent"] = nil // or the transport names itself
	}
}

// credentials are the headers that a client identifies itself with.
var credentials = []string{"Authorization", "X-Api-Key"}

// forwardCredential adds what the client identifies itself with to the provider.
func forwardCredential(dst, src http.Header) {
	for _, name := range credentials {
		if values, ok := src[name]; ok {
			dst[name] = values
		}
	}
}

func inFamily(name string) bool {
	for _, f := range families {
		if strings.HasPrefix(name, f) {
			return true
		}
	}
	return false
}
