// Package flood_test does to the built cc-relay what a client can do with HTTP/2 frames
// alone. It is apart from e2e, whose SDKs take long to compile.
package flood_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	relayToken = "relay-token-of-the-floods"
	keyA       = "sk-simulated-aaaaaaaa"
)

// relayBinary is the program under test, built once by TestMain.
var relayBinary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cc-relay-flood-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	relayBinary = filepath.Join(dir, "cc-relay")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", relayBinary, "./cmd/cc-relay")
	cmd.Dir, cmd.Stderr = "../..", os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "flood: build the relay:", err)
		return 1
	}
	return m.Run()
}

func TestFault(t *testing.T) {
	t.Run("C22", testFloods)
}

// flooded is a relay behind TLS, its provider, and a client that minds its own business.
type flooded struct {
	t       *testing.T
	addr    string
	cmd     *exec.Cmd
	trusted *x509.CertPool
	client  *http.Client

	active, most atomic.Int64 // requests at the provider: now, and at most
}

func flood(t *testing.T) *flooded {
	f := &flooded{t: t, trusted: x509.NewCertPool()}
	up := httptest.NewServer(http.HandlerFunc(f.provide))
	t.Cleanup(up.Close)
	cert, key := f.pair()
	f.serve(fmt.Sprintf("server: {listen: \"127.0.0.1:0\", state: \"off\", tls: {cert_file: %q, key_file: %q}}\n"+
		"clients: [{name: e2e, token: %q}]\nproviders: [{base_url: %q, keys: [{key: %q}]}]\n", cert, key, relayToken, up.URL, keyA))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: f.trusted}, ForceAttemptHTTP2: true}
	f.client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	return f
}

// serve starts the relay, which must end in order, and have logged no secret.
func (f *flooded) serve(config string) {
	path := filepath.Join(f.t.TempDir(), "config.yaml")
	require.NoError(f.t, os.WriteFile(path, []byte(config), 0o600))
	f.cmd = exec.Command(relayBinary, "serve", "--config", path)
	stderr, err := f.cmd.StderrPipe()
	require.NoError(f.t, err)
	require.NoError(f.t, f.cmd.Start())
	serves, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			assert.NotContains(f.t, lines.Text(), relayToken)
			assert.NotContains(f.t, lines.Text(), keyA)
			var record struct{ Message, Listen string }
			if json.Unmarshal(lines.Bytes(), &record) == nil && record.Message == "relay serves" {
				serves <- record.Listen
			}
		}
	}()
	f.t.Cleanup(func() {
		assert.NoError(f.t, f.cmd.Process.Signal(syscall.SIGTERM))
		kill := time.AfterFunc(30*time.Second, func() { _ = f.cmd.Process.Kill() })
		defer kill.Stop()
		<-ended
		assert.NoError(f.t, f.cmd.Wait(), "exit of the relay")
	})
	select {
	case f.addr = <-serves:
	case <-ended:
	case <-time.After(30 * time.Second):
	}
	require.NotEmpty(f.t, f.addr, "the relay does not serve")
}

// provide answers at once, but where the request is of a flood: then it holds on to it.
func (f *flooded) provide(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	now := f.active.Add(1)
	defer f.active.Add(-1)
	for most := f.most.Load(); now > most && !f.most.CompareAndSwap(most, now); most = f.most.Load() {
	}
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n"+
		"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n")
	w.(http.Flusher).Flush()
	if bytes.Contains(body, []byte("of a flood")) {
		<-r.Context().Done()
		return
	}
	_, _ = io.WriteString(w, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\n"+
		"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
}

// pair makes a certificate for loopback.
func (f *flooded) pair() (cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(f.t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(f.t, err)
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	f.trusted.AppendCertsFromPEM(public)
	dir := f.t.TempDir()
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	require.NoError(f.t, os.WriteFile(cert, public, 0o600))
	require.NoError(f.t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return cert, key
}

func message(text string) string {
	return `{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"` + text + `"}]}`
}

// asks sends one request of the client that minds its own business, and returns how
// long it took.
func (f *flooded) asks() (time.Duration, error) {
	began := time.Now()
	req, err := http.NewRequest(http.MethodPost, "https://"+f.addr+"/v1/messages", strings.NewReader(message("hello")))
	if err != nil {
		return 0, err
	}
	req.Header.Set("X-Api-Key", relayToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || !bytes.Contains(text, []byte("message_stop"))) {
		err = fmt.Errorf("status %d, answer %q", resp.StatusCode, text)
	}
	return time.Since(began), err
}

// neighbour asks until stop, and returns how long each request took. All must succeed.
func (f *flooded) neighbour(ctx context.Context) (took []time.Duration) {
	for ctx.Err() == nil {
		d, err := f.asks()
		if !assert.NoError(f.t, err, "another client's request") {
			return took
		}
		took = append(took, d)
		time.Sleep(2 * time.Millisecond) // it is a client, not a load
	}
	return took
}

// memory is what the relay has in RAM, in bytes; 0 where the system does not tell.
func (f *flooded) memory() int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", f.cmd.Process.Pid))
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// spent is the CPU time that the relay has taken; 0 where the system does not tell.
func (f *flooded) spent() time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.cmd.Process.Pid))
	_, text, _ = bytes.Cut(text, []byte(") ")) // the name may hold spaces
	fields := strings.Fields(string(text))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ, proc(5)
}

// attacker is one connection that speaks HTTP/2 as it likes.
type attacker struct {
	*http2.Framer
	conn    net.Conn
	out     *bufio.Writer
	block   bytes.Buffer
	headers *hpack.Encoder

	mu     sync.Mutex
	gone   *http2.GoAwayFrame // guarded by mu, as what follows
	resets int                // streams that the relay reset
	ponged bool               // it answered the last ping
	ended  error
}

// attack opens a connection with these settings, and reads what comes unless deaf.
func (f *flooded) attack(deaf bool, settings ...http2.Setting) *attacker {
	f.t.Helper()
	tcp, err := net.Dial("tcp", f.addr)
	require.NoError(f.t, err)
	conn := tls.Client(tcp, &tls.Config{RootCAs: f.trusted, ServerName: "127.0.0.1", NextProtos: []string{"h2"}})
	f.t.Cleanup(func() { _ = tcp.Close() })
	require.NoError(f.t, conn.Handshake())
	require.NoError(f.t, tcp.SetWriteDeadline(time.Now().Add(2*time.Minute)))
	a := &attacker{conn: conn, out: bufio.NewWriterSize(conn, 16<<10)}
	a.Framer = http2.NewFramer(a.out, conn)
	a.AllowIllegalWrites = true
	a.headers = hpack.NewEncoder(&a.block)
	_, err = io.WriteString(a.out, http2.ClientPreface)
	require.NoError(f.t, err)
	require.NoError(f.t, a.WriteSettings(settings...))
	require.NoError(f.t, a.out.Flush())
	if !deaf {
		go a.listen()
	}
	return a
}

// listen reads until the connection ends.
func (a *attacker) listen() {
	for {
		frame, err := a.ReadFrame()
		a.mu.Lock()
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			a.gone = frame
		case *http2.RSTStreamFrame:
			a.resets++
		case *http2.PingFrame:
			a.ponged = a.ponged || frame.Data == lastPing
		}
		if err != nil {
			a.ended = err
		}
		a.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// stopped reports whether the relay has had enough of the connection.
func (a *attacker) stopped() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gone != nil || a.ended != nil
}

func (a *attacker) reset() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.resets
}

var lastPing = [8]byte{'l', 'a', 's', 't'}

// survives waits until the relay has worked off what was sent, or closed.
func (f *flooded) survives(a *attacker) error {
	if err := a.WritePing(false, lastPing); err != nil {
		return err
	}
	if err := a.out.Flush(); err != nil {
		return err
	}
	require.Eventually(f.t, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.ponged || a.gone != nil || a.ended != nil
	}, time.Minute, time.Millisecond, "an answer to the last ping")
	return nil
}

// post is the header block of a request with this token.
func (a *attacker) post(token string, length int) []byte {
	a.block.Reset()
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":authority", "127.0.0.1"}, {":path", "/v1/messages"},
		{"content-type", "application/json"}, {"x-api-key", token}, {"content-length", strconv.Itoa(length)},
	} {
		_ = a.headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true})
	}
	return a.block.Bytes()
}

// request opens a stream with a whole request on it.
func (a *attacker) request(stream uint32, token string) error {
	body := []byte(message("of a flood"))
	if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: a.post(token, len(body)), EndHeaders: true}); err != nil {
		return err
	}
	return a.WriteData(stream, true, body)
}

// many is how many frames a flood has.
const many = 20_000

// testFloods: what a client can do to a server with frames alone. The relay ends it, or
// it costs no more than so much; other clients do not notice.
func testFloods(t *testing.T) {
	for name, tt := range map[string]struct {
		deaf     bool // it does not read what the relay says
		settings []http2.Setting
		does     func(f *flooded, a *attacker) error // an error: the relay has closed the connection
		ends     bool                                // the relay must have had enough
		costs    time.Duration                       // CPU time it may take in all; 0: 5 s, ten times what most take
	}{
		"rapid reset": {does: func(_ *flooded, a *attacker) error {
			for i := range uint32(many) {
				if err := a.request(2*i+1, relayToken); err != nil {
					return err
				}
				if err := a.WriteRSTStream(2*i+1, http2.ErrCodeCancel); err != nil {
					return err
				}
			}
			return a.out.Flush()
		}},
		"rapid reset by nobody": {does: func(_ *flooded, a *attacker) error {
			for i := range uint32(many) {
				if err := a.request(2*i+1, "not-a-token-of-anybody"); err != nil {
					return err
				}
				if err := a.WriteRSTStream(2*i+1, http2.ErrCodeCancel); err != nil {
					return err
				}
			}
			return a.out.Flush()
		}},
		"CONTINUATION without end": {ends: true, does: func(_ *flooded, a *attacker) error {
			if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.post(relayToken, 2)}); err != nil {
				return err
			}
			a.block.Reset()
			for range 16 {
				_ = a.headers.WriteField(hpack.HeaderField{Name: "x-more", Value: strings.Repeat("m", 900), Sensitive: true})
			}
			more := bytes.Clone(a.block.Bytes())
			for range 8192 { // 100 MB
				if err := a.WriteContinuation(1, false, more); err != nil {
					return err
				}
			}
			return a.out.Flush()
		}},
		// The relay answers only the last of those that wait to be, so it needs no budget.
		"SETTINGS": {does: func(f *flooded, a *attacker) error {
			for range 10 * many {
				if err := a.WriteSettings(); err != nil {
					return err
				}
			}
			return f.survives(a)
		}},
		// All that wait share one answer, and small ones go into the kernel's buffers for
		// megabytes of these: only then is it known that nobody reads.
		"SETTINGS, unread": {deaf: true, ends: true, costs: 15 * time.Second, does: func(_ *flooded, a *attacker) error {
			for range 1000 * many {
				if err := a.WriteSettings(); err != nil {
					return err
				}
			}
			return a.out.Flush()
		}},
		"PING, unread": {deaf: true, ends: true, does: func(_ *flooded, a *attacker) error {
			for range 100 * many {
				if err := a.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return a.out.Flush()
		}},
		"PING": {does: func(f *flooded, a *attacker) error {
			for range 10 * many {
				if err := a.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return f.survives(a)
		}},
		// Each stream has one answer that nobody takes. The relay gives up each within the
		// time for one write, and no more than 100 are open at once.
		"windows of zero": {settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, does: func(f *flooded, a *attacker) error {
			for i := range uint32(150) {
				if err := a.request(2*i+1, relayToken); err != nil {
					return err
				}
			}
			if err := a.out.Flush(); err != nil {
				return err
			}
			require.Eventually(f.t, func() bool { return a.stopped() || a.reset() >= 150 }, time.Minute, 10*time.Millisecond, "streams that nobody reads")
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := flood(t)
			calm, stop := context.WithTimeout(t.Context(), 2*time.Second)
			idle := f.spent()
			before := f.neighbour(calm)
			stop()
			require.NotEmpty(t, before)
			had, spent := f.memory(), f.spent()
			each := (spent - idle) / time.Duration(len(before))

			a := f.attack(tt.deaf, tt.settings...)
			during, stop := context.WithCancel(t.Context())
			asked := make(chan []time.Duration)
			go func() { asked <- f.neighbour(during) }()
			began := time.Now()
			err := tt.does(f, a)
			if tt.ends {
				if err == nil && !tt.deaf {
					require.Eventually(t, a.stopped, 10*time.Second, 10*time.Millisecond, "the relay puts up with it")
				} else if err == nil {
					assert.Fail(t, "the relay puts up with it")
				}
				var timeout net.Error
				assert.False(t, errors.As(err, &timeout) && timeout.Timeout(), "the relay neither read on nor closed: %v", err)
			}
			lasted, held, spent := time.Since(began), f.memory(), f.spent()-spent
			stop()
			took := <-asked
			if len(took) == 0 { // it was over before a request was
				d, err := f.asks()
				require.NoError(t, err)
				took = append(took, d)
			}
			t.Logf("%s: over after %s (%v, stopped %v); %d requests of another client, median %s, before %s, CPU time of each %s; memory %d KB, before %d KB; at most %d at the provider; CPU time in all %s",
				name, lasted.Round(time.Millisecond), err, a.stopped(), len(took), median(took), median(before), each, held>>10, had>>10, f.most.Load(), spent)
			if tt.ends {
				assert.Less(t, lasted, 45*time.Second, "until the relay has had enough")
			}
			// What others lose is what they wait, and the CPU time that the flood takes from
			// them. The time depends on how loaded this machine is, so it is held against what
			// it was just before. The CPU time does not: all but twice what the requests of
			// others take is the flood's, which a single connection can take no more of than
			// this. A relay that read on would take it for as long as there are frames.
			assert.Less(t, spent, 2*each*time.Duration(len(took))+cmp.Or(tt.costs, 5*time.Second), "CPU time of the relay")
			// The flood itself is sent from this machine, whose cores it takes, too. A few
			// requests have no median to speak of, and of a flood that is over within a second
			// no client loses more than that.
			if len(took) >= 20 || lasted > time.Second {
				assert.Less(t, median(took), 2*median(before)+20*time.Millisecond, "another client waits")
			}
			assert.Less(t, held-had, int64(64<<20), "memory that the flood takes")
			assert.LessOrEqual(t, f.most.Load(), int64(102), "requests at the provider: 100 streams, and another client's")

			_ = a.conn.Close()
			require.Eventually(t, func() bool { return f.active.Load() == 0 }, 10*time.Second, 10*time.Millisecond, "requests left at the provider")
			_, err = f.asks()
			assert.NoError(t, err, "after the flood")
		})
	}
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}
