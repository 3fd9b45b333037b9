package http1_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/http1"
)

// certificate is one for up.example, signed by itself.
var certificate = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	is := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "up.example"}, DNSNames: []string{"up.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, is, is, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

func serverTLS(t *testing.T) *tls.Config {
	cert, err := certificate()
	require.NoError(t, err)
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

func clientTLS(t *testing.T) *tls.Config {
	cert, err := certificate()
	require.NoError(t, err)
	parsed, err := x509.ParseCertificate(cert.Certificate[0])
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return &tls.Config{RootCAs: roots, ServerName: "up.example"}
}

// A connection of TLS is kept although the server's tickets come when nobody
// reads, and is dropped when the server says farewell.
func TestKeepingConnectionsOfTLS(t *testing.T) {
	said := make(chan struct{})
	s := newServer(t, overTLS, func(p *peer) {
		for range 3 {
			p.serve(ok)
		}
		assert.NoError(t, p.Conn.(*tls.Conn).CloseWrite())
		close(said)
		p.untilClosed()
	}, func(p *peer) { p.serve(ok); p.untilClosed() })
	for range 3 {
		s.requireOK(t)
	}
	assert.EqualValues(t, 1, s.dials.Load(), "connections")
	<-said
	s.requireOK(t)
	assert.EqualValues(t, 2, s.dials.Load(), "connections")
}

// A host that refuses HTTP/1.1 is not asked for it again; another one is.
func TestHostsWithoutHTTP1(t *testing.T) {
	var other fallback
	dials := map[string]int{}
	tr := http1.NewTransport(http1.Config{
		Fallback: &other,
		Dial: func(_ context.Context, scheme, addr string) (net.Conn, error) {
			dials[scheme+" "+addr]++
			if strings.HasPrefix(addr, "h2.") {
				return nil, fmt.Errorf("handshake: %w", http1.ErrNoHTTP1)
			}
			return nil, errors.New("down")
		},
	})
	for n := range 3 {
		for _, url := range []string{"https://h2.example/", "https://h1.example/"} {
			req, _, closed := post(t, "hello")
			req.URL = mustURL(url)
			err := do(t, tr, req).err
			if url == "https://h2.example/" {
				require.ErrorIs(t, err, errFallback)
				require.Len(t, other.got, n+1)
				assert.Same(t, req, other.got[n])
				assert.Zero(t, closed.Load(), "closing is the other's now")
			} else {
				require.EqualError(t, err, "down")
				assert.EqualValues(t, 1, closed.Load(), "closed bodies")
			}
		}
	}
	assert.Equal(t, map[string]int{"https h2.example:443": 1, "https h1.example:443": 3}, dials)
}
