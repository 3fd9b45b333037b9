package provider_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
)

// testForbiddenAddresses: addresses that lead to this machine by another name, to a
// cloud's metadata or to many are refused before anything is sent.
func testForbiddenAddresses(t *testing.T) {
	called := false
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	t.Cleanup(srv.Close)
	port := srv.URL[strings.LastIndex(srv.URL, ":"):]
	for _, scheme := range []string{"http://", "https://"} {
		for _, host := range []string{
			"0.0.0.0", "[::]", "[::ffff:0.0.0.0]", "169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]", "224.0.0.1", "[ff02::1]", "255.255.255.255",
		} {
			_, err := get(t, newTransport(t, provider.Config{}), scheme+host+port)
			requireConnectError(t, err, "the address is not one of a provider")
		}
	}
	require.False(t, called)
	resp, err := get(t, newTransport(t, provider.Config{}), srv.URL)
	require.NoError(t, err)
	assert.Equal(t, 200, resp.StatusCode, "servers of one's own are called")
}

// The tests of rows of the catalogue of faults, by the rows' names.

func TestSecurity(t *testing.T) {
	t.Run("S18", testForbiddenAddresses)
	t.Run("S19", func(t *testing.T) {
		t.Run("trust", TestTransportTrustsOnlyWhatItIsTold)
		t.Run("proxies", TestTransportIgnoresProxyVariables)
	})
	t.Run("S17", TestTransportNeitherFollowsNorUnpacks)
}
