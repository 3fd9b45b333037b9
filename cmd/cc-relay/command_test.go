package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/admin"
)

// stateOf is the path of a file in the state directory.
func (p *process) stateOf(name string) string {
	return filepath.Join(p.cmd.Dir, ".local", "state", "cc-relay", name)
}

// ask runs a command about the relay, with one of its tokens.
func (s *steered) ask(token string, args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	return command(s.t, append(args, "--admin", "http://"+s.adminAddr, "--token-file", s.stateOf(token))...)
}

// do runs a command with the admin's token, which must succeed, and returns what it says.
func (s *steered) do(args ...string) string {
	s.t.Helper()
	code, stdout, stderr := s.ask("admin.token", args...)
	require.Zero(s.t, code, "%v: %s", args, stderr)
	assert.Empty(s.t, stderr, "%v", args)
	return stdout
}

// wellness is the exit code of status, and what it says.
func (s *steered) wellness() (code int, said admin.Stats) {
	s.t.Helper()
	code, stdout, stderr := s.ask("viewer.token", "status", "--json")
	require.Empty(s.t, stderr)
	require.NoError(s.t, json.Unmarshal([]byte(stdout), &said))
	return code, said
}

// following are the lines that events prints until stop.
type following struct {
	mu   sync.Mutex
	text bytes.Buffer
	stop func()
}

func (f *following) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.Write(p)
}

func (f *following) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}

func (s *steered) follow(args ...string) *following {
	ctx, cancel := context.WithCancel(context.Background())
	f, ended := &following{}, make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"events", "--admin", "http://" + s.adminAddr, "--token-file", s.stateOf("viewer.token")}, args...), f, f)
	}()
	f.stop = sync.OnceFunc(func() {
		cancel()
		assert.Zero(s.t, <-ended, "exit code of events; it said:\n%s", f.said())
	})
	s.t.Cleanup(f.stop)
	s.within("events listens", func() bool { return strings.HasPrefix(f.said(), "listening to http://"+s.adminAddr) })
	return f
}

// Each action of the command line takes effect at once, and the stream that is open
// goes on.
func TestCommandsTakeEffectAtOnce(t *testing.T) {
	unconfigured(t)
	s := steer(t)
	open := s.stream(annToken)
	require.Equal(t, firstKey, s.up.key())
	ids := s.keyIDs()
	require.Len(t, ids, 2)
	events := s.follow()
	s.within("the relay is healthy", func() bool { code, _ := s.wellness(); return code == 0 })
	took := func(args ...string) func() {
		t.Helper()
		began := time.Now()
		require.NotEmpty(t, s.do(args...))
		return func() {
			t.Helper()
			assert.Less(t, time.Since(began), slowest, "%v", args)
		}
	}

	done := took("key", "off", ids[0])
	assert.Equal(t, secondKey, s.next())
	done()
	tell := func(line string) {
		t.Helper()
		s.within("events tell "+line, func() bool { return strings.Contains(events.said(), line) })
	}
	tell("slow/" + ids[0] + ": available -> off")
	code, stats := s.wellness()
	assert.Equal(t, int(exitDegraded), code)
	assert.Equal(t, admin.Degraded, stats.Status.Status)
	assert.Contains(t, s.said("status"), "off")

	took("key", "off", ids[1])()
	code, _ = s.wellness()
	assert.Equal(t, int(exitDown), code)
	refused := s.send(annToken, "at once")
	assert.Equal(t, http.StatusBadGateway, refused.StatusCode)
	took("key", "on", ids[1])()

	done = took("key", "on", ids[0])
	assert.Equal(t, firstKey, s.next())
	done()
	tell("slow/" + ids[0] + ": off -> available")
	code, _ = s.wellness()
	assert.Zero(t, code)

	s.up.limit(firstKey)
	assert.Equal(t, secondKey, s.next())
	s.up.limit("")
	assert.Equal(t, secondKey, s.next(), "the first waits")
	code, _ = s.wellness()
	assert.Equal(t, int(exitDegraded), code)
	done = took("key", "release", ids[0], "--provider", "slow")
	assert.Equal(t, firstKey, s.next())
	done()

	done = took("provider", "drain", "slow")
	assert.Equal(t, 529, s.status(annToken))
	done()
	tell("slow: on -> draining")
	code, _ = s.wellness()
	assert.Equal(t, int(exitDown), code)
	done = took("provider", "on", "slow")
	assert.Equal(t, firstKey, s.next())
	done()

	said := s.do("breaker", "force", "slow", "open", "--for", "1h")
	assert.Regexp(t, `; until \d\d:\d\d:\d\d\n$`, said)
	tell("closed -> open (forced)")
	code, _ = s.wellness()
	assert.Equal(t, int(exitDegraded), code, "nothing else serves, so it is asked all the same")
	done = took("breaker", "force", "slow", "auto")
	code, _ = s.wellness()
	assert.Zero(t, code)
	assert.Equal(t, firstKey, s.next())
	done()

	s.writeText("logging: {format: console}\n" + s.text(annAlone, bothKeys))
	assert.Contains(t, s.do("config", "diff"), "logging.format  (needs a restart)\n")
	done = took("config", "reload")
	assert.Equal(t, http.StatusUnauthorized, s.status(benToken))
	done()
	s.writeText("nonsense: 1\n" + s.text(annAlone, bothKeys))
	for _, name := range []string{"diff", "reload"} {
		code, _, stderr := s.ask("admin.token", "config", name)
		assert.Equal(t, 1, code, name)
		assert.Contains(t, stderr, "relay.yaml:1", name)
		assert.Contains(t, stderr, "nonsense", name)
	}
	assert.Equal(t, http.StatusOK, s.status(annToken))
	s.write(twoClients, bothKeys)
	s.do("config", "reload")
	assert.Equal(t, http.StatusOK, s.status(benToken))

	s.ends(open)
	events.stop()
	s.signal()
	s.endsWell()
	audit, err := os.ReadFile(s.stateOf("audit.log"))
	require.NoError(t, err)
	for _, action := range []string{"key.off", "key.on", "key.release", "provider.drain", "provider.on", "breaker.force", "reload"} {
		assert.Contains(t, string(audit), `"action":"`+action+`"`)
	}
}

// said is the output of a command, whatever its exit code.
func (s *steered) said(args ...string) string {
	s.t.Helper()
	_, stdout, stderr := s.ask("viewer.token", args...)
	require.Empty(s.t, stderr)
	return stdout
}

// The story of a request is to be had from the command line, by the viewer's token.
// A script that mistypes a command must not believe that it has done something.
func TestMistypedCommandsFail(t *testing.T) {
	for _, args := range [][]string{{"key", "disable", "abc"}, {"breaker", "open", "main"}, {"provider", "off", "main"}, {"config", "bogus"}, {"bogus"}} {
		code, stdout, stderr := command(t, args...)
		assert.NotZero(t, code, "%v", args)
		assert.Empty(t, stdout, "%v", args)
		assert.Contains(t, stderr, "unknown command", "%v", args)
	}
	for want, args := range map[string][]string{
		"which key? give its ID":               {"key", "off"},
		"which provider? give its name":        {"provider", "drain"},
		"and one of open, closed, auto":        {"breaker", "force", "main"},
		"which provider? give its name, as `c": {"provider", "on", "a", "b"},
	} {
		code, _, stderr := command(t, args...)
		assert.NotZero(t, code, "%v", args)
		assert.Contains(t, stderr, want, "%v", args)
	}
	code, stdout, _ := command(t, "key")
	assert.Zero(t, code)
	assert.Contains(t, stdout, "release")
}

func TestCommandsTellOfRequests(t *testing.T) {
	unconfigured(t)
	s := steer(t)
	assert.Equal(t, "no requests yet\n", s.said("requests"))
	code, _, stderr := s.ask("viewer.token", "explain", "--last")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "has served no request yet")
	events := s.follow("--json")

	first := s.send(annToken, "at once")
	drained(t, first)
	id := first.Header.Get("X-Cc-Relay-Request-Id")
	require.NotEmpty(t, id)
	ids := s.keyIDs()
	s.up.limit(firstKey)
	second := s.send(benToken, "at once")
	drained(t, second)

	last := second.Header.Get("X-Cc-Relay-Request-Id")
	s.within("requests tells both", func() bool { return strings.Count(s.said("requests"), "\n") == 2 })
	list := strings.Split(s.said("requests"), "\n")
	assert.Contains(t, list[0], last)
	assert.Contains(t, list[0], "slow/"+ids[1]+" (2 attempts)")
	assert.Contains(t, list[1], id)
	assert.Equal(t, 1, strings.Count(s.said("requests", "--limit", "1"), "\n"))

	told := s.said("explain", id)
	assert.Contains(t, told, "request "+id)
	assert.Regexp(t, `client\s+ann`, told)
	assert.Contains(t, told, "key "+ids[0])
	assert.Equal(t, s.said("explain", last), s.said("explain", "--last"))
	told = s.said("explain", "--last")
	assert.Regexp(t, `(?s)1\. slow.*`+ids[0]+`.*2\. slow.*`+ids[1], told)

	_, _, nobody := s.ask("viewer.token", "explain", "--dry-run", "--model", "claude-sonnet-5-5", "--client", "Ann")
	assert.Contains(t, nobody, "there is no client \"Ann\"; the clients are ann, ben")
	told = s.said("explain", "--dry-run", "--model", "claude-sonnet-5-5", "--tokens", "30000", "--client", "ann")
	assert.Contains(t, told, "a request like this, now")
	assert.Contains(t, told, "key "+ids[1]+" would be chosen")
	assert.Contains(t, told, ids[0], "and why not the other")
	var dry map[string]any
	require.NoError(t, json.Unmarshal([]byte(s.said("explain", "--dry-run", "--model", "claude-sonnet-5-5", "--json")), &dry))
	s.within("events tells them", func() bool {
		text := events.said()
		return strings.Contains(text, id) && strings.Contains(text, last)
	})
	assert.Len(t, strings.Split(strings.TrimSpace(s.said("requests")), "\n"), 2, "a dry run is no request")

	code, _, stderr = s.ask("viewer.token", "explain", "nobody-sent-this")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "not known any more, or never was; only the latest are kept, see `cc-relay requests`")
	for _, text := range []string{events.said(), s.said("explain", id), s.said("requests", "--json")} {
		for _, secret := range []string{firstKey, secondKey, annToken, benToken, "nobody else may see"} {
			assert.NotContains(t, text, secret)
		}
	}
	events.stop()
	s.signal()
	s.endsWell()
}

func drained(t *testing.T, resp *http.Response) {
	t.Helper()
	_, err := new(bytes.Buffer).ReadFrom(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

// A command finds a relay wherever its configuration has its admin listener.
func TestCommandsFindTheRelay(t *testing.T) {
	up := newHalfway(t)
	short, err := os.MkdirTemp("", "cc") // the path of a socket must be
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	pair := newPairs(t)
	pair.renew()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer func() { _ = l.Close() }()
		return l.Addr().String()
	}
	for name, tt := range map[string]struct {
		listen, section string
		elsewhere       string // "": it is where the configuration says
		want            string // what status complains of
	}{
		"another port":      {listen: free()},
		"a socket":          {listen: "unix:" + filepath.Join(short, "a.sock")},
		"TLS":               {listen: free(), section: ", tls: {cert_file: " + pair.cert + ", key_file: " + pair.key + "}"},
		"off":               {listen: "off", want: "the admin listener is off in the configuration"},
		"another by a flag": {listen: free(), elsewhere: free(), want: "no relay answers at"},
	} {
		t.Run(name, func(t *testing.T) {
			unconfigured(t)
			state := filepath.Join(t.TempDir(), "state") // made by the relay, for it alone
			file := writeConfig(t, "server: {state_dir: "+state+"}\nadmin: {listen: \""+tt.listen+"\""+tt.section+"}\n"+
				"providers:\n  - {name: slow, base_url: \""+up.URL+"\", keys: [{key: \"${ONLY_THE_RELAY_HAS_THIS}\"}]}\n")
			listen := tt.listen
			if tt.elsewhere != "" {
				listen = tt.elsewhere
			}
			p := startServe(t, []string{"ONLY_THE_RELAY_HAS_THIS=sk-ant-found-0001"}, "--config", file, "--admin-listen", listen)
			assert.Equal(t, listen, p.adminAddr)
			code, stdout, stderr := command(t, "status", "--config", file)
			if tt.elsewhere != "" {
				assert.Equal(t, 1, code)
				assert.Contains(t, stderr, tt.want)
				assert.Contains(t, stderr, "--admin")
				code, stdout, stderr = command(t, "status", "--config", file, "--admin", "http://"+tt.elsewhere)
			} else if tt.want != "" {
				assert.Equal(t, 1, code)
				assert.Contains(t, stderr, tt.want)
				assert.NoFileExists(t, filepath.Join(state, "admin.token"))
				return
			}
			require.Zero(t, code, stderr)
			assert.Contains(t, stdout, "slow  1 key")
			id := regexp.MustCompile(`(?m)^ +([0-9a-f]{12}) `).FindStringSubmatch(stdout)[1]
			args := []string{"key", "off", id, "--config", file}
			if tt.elsewhere != "" {
				args = append(args, "--admin", "http://"+tt.elsewhere)
			}
			code, stdout, stderr = command(t, args...)
			assert.Zero(t, code, stderr)
			assert.Contains(t, stdout, "is off")
			if tt.section != "" {
				conn, err := pair.dial(listen, &tls.Config{NextProtos: []string{"h2", "http/1.1"}})
				require.NoError(t, err)
				assert.Equal(t, "http/1.1", conn.ConnectionState().NegotiatedProtocol)
				_, err = pair.dial(listen, &tls.Config{NextProtos: []string{"h2"}})
				assert.ErrorContains(t, err, "no application protocol", "HTTP/2 at the admin listener")
			}
			p.signal()
			p.endsWell()
			code, _, stderr = command(t, args...)
			assert.Equal(t, 1, code)
			assert.Contains(t, stderr, "no relay answers at")
		})
	}
}
