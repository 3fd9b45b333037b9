package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"cc-relay/internal/admin"
	"cc-relay/internal/config"
	"cc-relay/internal/secret"
)

// tokenVariable is the environment variable that may hold a token of the admin listener.
const tokenVariable = "CC_RELAY_ADMIN_TOKEN"

// Bounds of what is asked of a relay: the time for one answer, and its size in bytes.
const (
	adminTimeout = 40 * time.Second // a reload may take 30
	adminAnswer  = 64 << 20
)

// adminFlags say which relay a command is about. What they leave open is found in the
// configuration: the address in admin.listen, the token in the state directory.
type adminFlags struct {
	file      string // configuration
	address   string // URL or unix:/path
	tokenFile string
	cleartext bool
}

func (f *adminFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.file, "config", "c", "", "configuration file of the relay")
	flags.StringVar(&f.address, "admin", "", "admin address of the relay, a URL or unix:/PATH, over the file's admin.listen")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with a token, over "+tokenVariable+" and the relay's state directory")
	flags.BoolVar(&f.cleartext, "insecure-cleartext", false, "send the token without TLS to another machine, too")
}

// set names one of the flags that the command line has, "" if it has none of them.
func (f *adminFlags) set(cmd *cobra.Command) string {
	for _, name := range []string{"config", "admin", "token-file", "insecure-cleartext"} {
		if cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

// adminClient asks a running relay.
type adminClient struct {
	shown  string // the address, for messages
	base   string // URL that paths are added to
	token  secret.Value
	source string // where the token came from
	http   *http.Client
}

// client finds the relay and the token; it connects to nothing.
func (f *adminFlags) client() (*adminClient, error) {
	server, listener, cfgErr := f.configuration()
	c := &adminClient{http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	transport := &http.Transport{ResponseHeaderTimeout: adminTimeout, DisableCompression: true} // and no proxy: it would see the token
	c.http.Transport = transport
	address, trusted := f.address, ""
	if address == "" {
		if cfgErr != nil {
			return nil, fmt.Errorf("which relay? name its admin address with --admin, or its configuration with --config: %w", cfgErr)
		}
		var err error
		if address, err = adminAddress(listener); err != nil {
			return nil, err
		}
		trusted = listener.TLS.CertFile
	}
	if err := c.reach(address, transport, f.cleartext); err != nil {
		return nil, err
	}
	if trusted != "" {
		if err := trust(transport, trusted); err != nil {
			return nil, err
		}
	}
	return c, f.findToken(c, server, cfgErr)
}

// configuration is that of the relay; without any, the defaults.
func (f *adminFlags) configuration() (config.Server, config.Admin, error) {
	path, ok, err := config.Find(f.file)
	if err != nil {
		return config.Server{}, config.Admin{}, err
	}
	if ok {
		return config.LoadListeners(path)
	}
	cfg := config.Default()
	return cfg.Server, cfg.Admin, nil
}

// adminAddress is where a relay of this configuration is reached from its machine.
func adminAddress(cfg config.Admin) (string, error) {
	network, address := cfg.Address()
	if network == "" {
		return "", errors.New("the admin listener is off in the configuration: set admin.listen (its tokens need server.state: on), or name another relay with --admin")
	}
	scheme := "http://"
	if cfg.TLS.CertFile != "" {
		scheme = "https://"
	}
	if network == "unix" {
		return unixScheme + address, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("admin.listen: %w", err)
	}
	if port == "0" {
		return "", errors.New("admin.listen has port 0, so only the relay's log says where it listens: name it with --admin")
	}
	if ip := net.ParseIP(host); host == "" || ip.Equal(net.IPv4zero) {
		host = "127.0.0.1"
	} else if ip.Equal(net.IPv6zero) {
		host = "::1"
	}
	return scheme + net.JoinHostPort(host, port), nil
}

// reach sets where c connects to.
func (c *adminClient) reach(address string, transport *http.Transport, cleartext bool) error {
	c.shown = address
	if path, ok := strings.CutPrefix(address, unixScheme); ok {
		var dialer net.Dialer
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
		c.base = "http://localhost"
		return nil
	}
	if !strings.Contains(address, "://") { // HOST:PORT, as the relay's log and admin.listen say it
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return errors.New("--admin is not an address: give HOST:PORT, a URL such as https://relay.example:8788, or unix:/PATH")
	}
	if u.Scheme == "http" && !onThisMachine(u.Hostname()) && !cleartext {
		return fmt.Errorf("the token would go to %s in clear: use https, or a tunnel, or allow it with --insecure-cleartext", u.Host)
	}
	c.base = u.Scheme + "://" + u.Host + strings.TrimSuffix(u.Path, "/")
	c.shown = c.base
	return nil
}

func onThisMachine(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// trust accepts the certificate of a file, whatever name it is for and whoever signed
// it: the relay of this configuration has the key to it.
func trust(transport *http.Transport, certFile string) error {
	data, err := os.ReadFile(certFile)
	if err != nil {
		return fmt.Errorf("the certificate of the admin listener: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("the certificate of the admin listener: %s holds none", certFile)
	}
	want := block.Bytes
	transport.TLSClientConfig = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // in favour of the comparison below
		VerifyConnection: func(state tls.ConnectionState) error {
			if bytes.Equal(state.PeerCertificates[0].Raw, want) {
				return nil
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: state.ServerName, Intermediates: chain(state)})
			return err
		},
	}
	return nil
}

func chain(state tls.ConnectionState) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, link := range state.PeerCertificates[1:] {
		pool.AddCert(link)
	}
	return pool
}

// findToken takes the first there is: of --token-file, the environment, and the state
// directory's two, of which the admin's may do more.
func (f *adminFlags) findToken(c *adminClient, server config.Server, cfgErr error) error {
	if f.tokenFile != "" {
		return c.readToken(f.tokenFile)
	}
	if token := strings.TrimSpace(os.Getenv(tokenVariable)); token != "" {
		c.token, c.source = secret.New(token), tokenVariable
		return nil
	}
	const hint = "name a file with --token-file or set " + tokenVariable
	if cfgErr != nil {
		return fmt.Errorf("no token for %s: %s: %w", c.shown, hint, cfgErr)
	}
	dir, err := server.StatePath()
	if err != nil {
		return fmt.Errorf("no token for %s: %s: %w", c.shown, hint, err)
	}
	if dir == "" {
		return fmt.Errorf("no token for %s: server.state is off in the configuration; %s", c.shown, hint)
	}
	err = c.readToken(filepath.Join(dir, "admin.token"))
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		if c.readToken(filepath.Join(dir, "viewer.token")) == nil {
			return nil
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no token for %s: there is no %s, which a relay with an admin listener makes when it starts; start it as this user, or %s", c.shown, filepath.Join(dir, "admin.token"), hint)
	case err != nil:
		return fmt.Errorf("no token for %s: %s: %w", c.shown, hint, err)
	}
	return nil
}

// readToken takes a short line: a wrong file is more likely than a long token.
func (c *adminClient) readToken(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(token) > 1<<10 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%s holds no token: it should be one line", path)
	}
	c.token, c.source = secret.New(token), path
	return nil
}

// ask sends a request of the admin API and returns the body of a good answer. A body
// that is not nil is sent as JSON. The answer is JSON without control characters: names
// come from clients and providers, and go to a terminal. What is said of the configuration
// keeps its lines, one for each mistake: all in it is the operator's.
func (c *adminClient) ask(ctx context.Context, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, adminAnswer))
	if err != nil {
		return nil, fmt.Errorf("the answer of %s broke off: %w", c.shown, err)
	}
	var compact bytes.Buffer
	if json.Compact(&compact, data) != nil {
		return nil, c.stranger(resp.StatusCode)
	}
	return plain(compact.Bytes(), ofConfig(path)), nil
}

func ofConfig(path string) bool { return path == "/api/v1/reload" || path == "/api/v1/config/diff" }

// send returns a good answer, whose body the caller closes.
func (c *adminClient) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return nil, fmt.Errorf("--admin is not an address: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, c.refused(resp)
}

func (c *adminClient) unreachable(err error) error {
	var asked *url.Error
	if errors.As(err, &asked) {
		err = asked.Err
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no relay answers at %s: start one with `cc-relay serve`; if one runs, the first line of its log has its admin address: name that with --admin", c.shown)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is another user's: run this as the user of the relay", c.shown)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the relay at %s does not answer within %s", c.shown, adminTimeout)
	}
	return fmt.Errorf("cannot ask the relay at %s: %w", c.shown, err)
}

// refused turns an answer that is none into what to do about it.
func (c *adminClient) refused(resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var body admin.ErrorBody
	var compact bytes.Buffer
	if json.Compact(&compact, data) == nil {
		_ = json.Unmarshal(plain(compact.Bytes(), ofConfig(resp.Request.URL.Path)), &body)
	}
	message := body.Error.Message
	switch {
	case message == "" || body.Error.Code == "": // the port of the clients says errors in another way
		return c.stranger(resp.StatusCode)
	case resp.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("the relay at %s refused the token of %s: is that another relay's? name its token with --token-file or %s", c.shown, c.source, tokenVariable)
	case resp.StatusCode == http.StatusForbidden && body.Error.Code == "forbidden":
		return fmt.Errorf("the token of %s may only look: %s", c.source, message)
	}
	return errors.New(inCommands(message))
}

// inCommands says what the API calls by its paths as commands: this is where those are
// used.
func inCommands(message string) string {
	for _, way := range waysInCommands {
		message = way.path.ReplaceAllString(message, way.command)
	}
	return message
}

var waysInCommands = []struct {
	path    *regexp.Regexp
	command string
}{
	{regexp.MustCompile(`\bGET /api/v1/(keys|providers|status|stats)\b`), "`cc-relay status`"},
	{regexp.MustCompile(`\bGET /api/v1/requests\b`), "`cc-relay requests`"},
	{regexp.MustCompile(`\bPOST /api/v1/keys/([^/\s]+)/(on|off|release)\b`), "`cc-relay key $2 $1`"},
	{regexp.MustCompile(`\bPOST /api/v1/providers/([^/\s]+)/(on|drain)\b`), "`cc-relay provider $2 $1`"},
	{regexp.MustCompile(`\bPOST /api/v1/breakers/force and the state auto\b`), "`cc-relay breaker force PROVIDER auto`"},
	{regexp.MustCompile(`\bsay which as \{"provider": NAME\}`), "say which with --provider"},
}

func (c *adminClient) stranger(status int) error {
	return fmt.Errorf("%s does not answer like the admin listener of a relay (status %d): name that with --admin", c.shown, status)
}

// get asks for a path and reads the answer into a value; unknown fields are ignored.
// It returns the answer, too.
func (c *adminClient) get(ctx context.Context, path string, into any) ([]byte, error) {
	data, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return data, c.read(data, into)
}

func (c *adminClient) read(data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("the relay at %s is of another version than this command: %w", c.shown, err)
	}
	return nil
}

// plain replaces what could steer a terminal in compact JSON by spaces: control and
// formatting characters, as they are and escaped. With lines, escaped ends of lines stay.
func plain(compact []byte, lines bool) []byte {
	out := make([]byte, 0, len(compact))
	for i := 0; i < len(compact); {
		if compact[i] == '\\' && i+1 < len(compact) {
			n := 2
			r := rune(' ')
			switch compact[i+1] {
			case '"', '\\', '/':
				r = 'x'
			case 'n':
				if lines {
					r = 'x'
				}
			case 'u':
				n = min(6, len(compact)-i)
				v, _ := strconv.ParseUint(string(compact[i+2:i+n]), 16, 32)
				r = rune(v)
			}
			if r == ' ' || steers(r) {
				out = append(out, ' ')
			} else {
				out = append(out, compact[i:i+n]...)
			}
			i += n
			continue
		}
		r, n := utf8.DecodeRune(compact[i:])
		if steers(r) {
			out = append(out, ' ')
		} else {
			out = append(out, compact[i:i+n]...)
		}
		i += n
	}
	return out
}

func steers(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }

// writeJSON prints an answer for other programs.
func writeJSON(w io.Writer, compact []byte) error {
	var out bytes.Buffer
	if err := json.Indent(&out, compact, "", "  "); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, out.String())
	return err
}
