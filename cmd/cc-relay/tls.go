package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"cc-relay/internal/config"
)

// certificateCheck is how often, at most, handshakes look whether the files of a
// certificate have changed.
const certificateCheck = time.Second

// certificate is the pair of a TLS listener. Handshakes find changed files by
// themselves; open connections go on as they are. It may be used concurrently.
type certificate struct {
	certFile, keyFile string
	broken            func(error)
	protocols         []string // offered, the best first; not to be changed once it is in use

	pair    atomic.Pointer[tls.Certificate]
	checked atomic.Int64 // when the files were last looked at, in Unix nanoseconds

	mu   sync.Mutex
	seen [2]os.FileInfo // of the files last read, whether or not they could be used; guarded by mu
}

// newCertificate reads a chain and its key, both in PEM. broken, which may be nil, is
// told, once for each change of the files, why a changed pair is not used; the old one
// then stays. It is called from handshakes and must not block. Errors: files that cannot
// be read, that do not belong together, or a certificate that is not valid now.
func newCertificate(certFile, keyFile string, broken func(error)) (*certificate, error) {
	if broken == nil {
		broken = func(error) {}
	}
	c := &certificate{certFile: certFile, keyFile: keyFile, broken: broken, protocols: []string{"h2", "http/1.1"}}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload reads the files even if they look the same. Its error is that of
// newCertificate, and broken is not told it; the old pair then stays in use.
func (c *certificate) Reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loadLocked(time.Now(), stat(c.certFile, c.keyFile))
}

// NotAfter is when the certificate in use expires; the rest of its chain may before.
func (c *certificate) NotAfter() time.Time { return c.pair.Load().Leaf.NotAfter }

// config is for tls.NewListener. http.Server speaks what was agreed on.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     c.protocols,
		GetCertificate: c.current,
	}
}

func (c *certificate) current(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := time.Now()
	if now.Sub(time.Unix(0, c.checked.Load())).Abs() >= certificateCheck && c.mu.TryLock() { // the others need not wait for a disk
		err := c.refreshLocked(now)
		c.mu.Unlock()
		if err != nil {
			c.broken(fmt.Errorf("the old certificate stays in use: %w", err))
		}
	}
	return c.pair.Load(), nil
}

func (c *certificate) refreshLocked(now time.Time) error {
	files := stat(c.certFile, c.keyFile)
	if same(files[0], c.seen[0]) && same(files[1], c.seen[1]) {
		c.checked.Store(now.UnixNano())
		return nil
	}
	return c.loadLocked(now, files)
}

// loadLocked remembers the files as they were before they were read: what is written
// to them meanwhile is found by the next check.
func (c *certificate) loadLocked(now time.Time, files [2]os.FileInfo) error {
	c.checked.Store(now.UnixNano())
	c.seen = files
	pair, err := config.TLS{CertFile: c.certFile, KeyFile: c.keyFile}.Pair()
	if err != nil {
		return err
	}
	if err := validAt(&pair, now); err != nil {
		return fmt.Errorf("certificate %s %w", c.certFile, err)
	}
	c.pair.Store(&pair)
	return nil
}

// validAt explains itself with the clock: a wrong one looks like a bad certificate.
func validAt(pair *tls.Certificate, now time.Time) error {
	from, until := pair.Leaf.NotBefore, pair.Leaf.NotAfter
	clock := now.UTC().Format(time.RFC3339)
	switch {
	case now.Before(from):
		return fmt.Errorf("is not valid before %s, and the clock of this machine says %s; if that is wrong set the clock, otherwise use another certificate",
			from.UTC().Format(time.RFC3339), clock)
	case now.After(until):
		return fmt.Errorf("expired at %s, and the clock of this machine says %s; if that is wrong set the clock, otherwise renew the certificate",
			until.UTC().Format(time.RFC3339), clock)
	}
	return nil
}

// stat leaves nil for a file that cannot be looked at; reading it tells why.
func stat(certFile, keyFile string) (files [2]os.FileInfo) {
	for i, path := range []string{certFile, keyFile} {
		if info, err := os.Stat(path); err == nil {
			files[i] = info
		}
	}
	return files
}

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
