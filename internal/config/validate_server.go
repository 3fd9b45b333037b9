package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxSocketPath is what the shortest sun_path of our systems holds.
const maxSocketPath = 103

// checkListeners checks both listeners, and what each asks for before other machines
// may reach it.
func (c *Config) checkListeners(r *report) {
	s, a := c.Server, c.Admin
	port, ok := checkAddress(r, "server.listen", s.Listen, "HOST:PORT, such as 127.0.0.1:8787")
	open := ok && !isLoopback(hostOf(s.Listen))
	if open && len(c.Clients) == 0 && !r.failed["clients"] {
		r.addf("server.listen", "other machines could spend your keys: no clients are configured; "+
			"add clients, each with a name and a token, or listen on 127.0.0.1:8787")
	}
	checkTLS(r, "server", s.TLS, open, s.InsecureCleartext)
	checkHosts(r, "server.allowed_hosts", s.AllowedHosts)
	checkOrigins(r, "server.allowed_origins", s.AllowedOrigins)

	adminPort, ok := checkAdminListen(r, a)
	checkTLS(r, "admin", a.TLS, ok && !isLoopback(hostOf(a.Listen)), a.InsecureCleartext)
	checkHosts(r, "admin.allowed_hosts", a.AllowedHosts)
	if network, _ := a.Address(); network != "" && s.State == StateOff {
		r.addf("admin.listen", "its tokens are kept with the state, and server.state is off; write off, or turn the state on")
	}
	if ok && port != 0 && port == adminPort {
		r.addf("admin.listen", "same port as server.listen; choose another, such as %s, or write off", adminListen)
	}
}

// checkAdminListen returns the port of an address; ok is false for all else.
func checkAdminListen(r *report, a Admin) (port uint64, ok bool) {
	const path, ways = "admin.listen", "HOST:PORT, such as " + adminListen + ", unix:/PATH, or off"
	switch network, socket := a.Address(); network {
	case "tcp":
		return checkAddress(r, path, a.Listen, ways)
	case "unix":
		if !filepath.IsAbs(socket) || strings.ContainsRune(socket, 0) || len(socket) > maxSocketPath {
			r.addf(path, "not a path for a socket; write an absolute one of at most %d bytes after unix:", maxSocketPath)
		}
		if !a.TLS.IsZero() {
			r.addf("admin.tls", "a unix socket has no use for it; remove it, or listen on HOST:PORT")
		}
	default:
		if a.Listen != AdminOff {
			r.addf(path, "not an address; write %s", ways)
		}
	}
	return 0, false
}

// checkAddress returns the port of address; ways says what to write instead.
func checkAddress(r *report, path, address, ways string) (port uint64, ok bool) {
	host, digits, err := net.SplitHostPort(address)
	if err != nil {
		r.addf(path, "not an address; write %s", ways)
		return 0, false
	}
	port, err = strconv.ParseUint(digits, 10, 16)
	if err != nil {
		r.addf(path, "the port must be a number from 0 to 65535")
		return 0, false
	}
	if strings.ContainsFunc(host, func(c rune) bool { return c <= ' ' || c > '~' || c == '/' }) {
		r.addf(path, "not a host; write an IP address or localhost")
		return 0, false
	}
	return port, true
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

// isLoopback reports whether host reaches this machine only. A name other than
// localhost may resolve to anything.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// checkTLS checks the certificate of a listener; open says that other machines reach it.
func checkTLS(r *report, section string, t TLS, open, cleartext bool) {
	path := section + ".tls"
	switch {
	case r.failed[path] || r.failed[path+".cert_file"] || r.failed[path+".key_file"]:
	case t.IsZero():
		if open && !cleartext && !r.failed[section+".insecure_cleartext"] {
			r.addf(path, "none, and other machines reach %s.listen: tokens and prompts would cross the network unencrypted; "+
				"write cert_file and key_file, or set %s.insecure_cleartext: true where something before the relay encrypts", section, section)
		}
	case t.KeyFile == "":
		r.addf(path+".key_file", "missing; write both cert_file and key_file")
	case t.CertFile == "":
		r.addf(path+".cert_file", "missing; write both cert_file and key_file")
	default:
		checkPair(r, path, t)
	}
}

// checkPair reads both files now: a pair that is found broken later would fail every
// connection. Its messages leave out those of the library, which quote the files.
func checkPair(r *report, path string, t TLS) {
	_, badCert, badKey := t.read()
	if badCert != nil {
		r.add(path+".cert_file", badCert)
	}
	if badKey != nil {
		r.add(path+".key_file", badKey)
	}
}

// Pair reads the files as they are now. It waits for no pipe, and takes no key that
// others may read. Its errors name the file, and quote nothing that is in it.
func (t TLS) Pair() (tls.Certificate, error) {
	pair, badCert, badKey := t.read()
	switch {
	case badCert != nil:
		return tls.Certificate{}, fmt.Errorf("certificate %s: %w", t.CertFile, badCert)
	case badKey != nil:
		return tls.Certificate{}, fmt.Errorf("key %s of certificate %s: %w", t.KeyFile, t.CertFile, badKey)
	}
	return pair, nil
}

// read returns the pair, or what is wrong with each of its files.
func (t TLS) read() (pair tls.Certificate, badCert, badKey error) {
	cert, _, badCert := readFile(t.CertFile, maxFileBytes)
	if badCert == nil && !x509.NewCertPool().AppendCertsFromPEM(cert) {
		badCert = errNoCertificate
	}
	key, info, badKey := readFile(t.KeyFile, maxFileBytes)
	if badKey == nil {
		badKey = private(info)
	}
	if badCert != nil || badKey != nil {
		return pair, badCert, badKey
	}
	if pair, badKey = tls.X509KeyPair(cert, key); badKey != nil {
		badKey = errors.New("is not the key of the certificate in cert_file; name its private key, as unencrypted PEM, and put that certificate first")
	}
	return pair, nil, badKey
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)

func checkHosts(r *report, path string, hosts []string) {
	checkEach(r, path, hosts, func(host string) error {
		if _, err := netip.ParseAddr(host); err != nil && !hostName.MatchString(host) {
			return errors.New("not a host; write its name or IP address, without a scheme and a port")
		}
		return nil
	})
}

func checkOrigins(r *report, path string, origins []string) {
	checkEach(r, path, origins, func(origin string) error {
		// What checks the requests must take it too.
		if http.NewCrossOriginProtection().AddTrustedOrigin(origin) != nil || !isVisible(origin) || strings.ContainsAny(origin, "@*") {
			return errors.New("not an origin; write SCHEME://HOST or SCHEME://HOST:PORT, such as https://app.example.com")
		}
		if origin != strings.ToLower(origin) {
			return errors.New("browsers send origins in lower case; write it so")
		}
		return nil
	})
}

// checkEach also reports an entry that is written twice.
func checkEach(r *report, path string, list []string, check func(string) error) {
	first := map[string]int{}
	for i, one := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if err := check(one); err != nil {
			r.add(at, err)
			continue
		}
		if before, dup := first[strings.ToLower(one)]; dup {
			r.addf(at, "same as %s[%d]; remove one", path, before)
			continue
		}
		first[strings.ToLower(one)] = i
	}
}

func checkTracing(r *report, t Tracing) {
	const path = "tracing.endpoint"
	u, err := url.Parse(t.Endpoint)
	switch {
	case t.Endpoint == "":
	case err != nil || u.Hostname() == "" || !isVisible(t.Endpoint) || (u.Scheme != "http" && u.Scheme != "https"):
		r.addf(path, "not an absolute URL; write that of an OTLP receiver, such as http://127.0.0.1:4318/v1/traces")
	case u.User != nil:
		r.addf(path, "must not hold a user name or password; credentials belong under headers")
	case strings.ContainsAny(t.Endpoint, "?#"):
		r.addf(path, "must not have a query or a fragment; end it before the ? or #")
	}
	checkHeaders(r, "tracing.headers.", t.Headers, "")
	for _, name := range slices.Sorted(maps.Keys(t.Headers)) {
		at := "tracing.headers." + name
		switch {
		case r.failed[at] || t.Endpoint == "":
		case strings.EqualFold(name, "Content-Type") || strings.EqualFold(name, "Content-Encoding"):
			r.addf(at, "is set by the relay; remove it")
		case t.Headers[name].Reveal() == "":
			r.addf(at, "is empty; write its value, or remove it")
		case err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()):
			r.addf(at, "would cross the network in clear; make tracing.endpoint https, or use a collector on this machine")
		}
	}
	if !(t.Sample >= 0 && t.Sample <= 1) { // NaN neither
		r.addf("tracing.sample", "not a share; write 0 (none) to 1 (all)")
	}
}
