package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/bench/rig"
	"cc-relay/internal/config"
)

func TestCompare(t *testing.T) {
	whole := rig.Usage{Input: 3, CacheWrite: 5, CacheRead: 7, Output: 11}
	first := rig.Usage{Input: 3, CacheWrite: 5, CacheRead: 7, Output: 1}
	with := func(u rig.Usage, output int) rig.Usage { u.Output = output; return u }
	for name, tt := range map[string]struct {
		a    answer
		r    record
		c    call
		want string // empty: all agree
	}{
		"complete":                                        {answer{end: complete, usage: whole}, record{usage: whole}, call{usage: whole}, ""},
		"complete, the relay differs":                     {answer{end: complete, usage: whole}, record{usage: with(whole, 10)}, call{usage: whole}, "the relay wrote"},
		"complete, the provider differs":                  {answer{end: complete, usage: whole}, record{usage: whole}, call{usage: first}, "the provider sent"},
		"complete and partial":                            {answer{end: complete, usage: whole}, record{usage: whole, partial: true}, call{usage: whole}, "marked partial"},
		"cut, told":                                       {answer{end: cut, started: true, told: true, usage: first, deltas: 4}, record{usage: with(first, 4), partial: true}, call{usage: first, deltas: 6}, ""},
		"cut, told, the relay counts more":                {answer{end: cut, started: true, told: true, usage: first, deltas: 4}, record{usage: with(first, 5), partial: true}, call{usage: first, deltas: 6}, "cut after"},
		"cut, not partial":                                {answer{end: cut, started: true, told: true, usage: first, deltas: 4, why: "reset"}, record{usage: with(first, 4)}, call{usage: first}, "not marked partial: reset"},
		"cut after the last usage":                        {answer{end: cut, started: true, final: true, told: true, usage: whole, deltas: 40}, record{usage: whole, partial: true}, call{usage: whole, deltas: 40}, ""},
		"broken off, the relay had read more":             {answer{end: cut, started: true, usage: first, deltas: 4}, record{usage: with(first, 6), partial: true}, call{usage: first, deltas: 6}, ""},
		"broken off, the relay wrote more than there was": {answer{end: cut, started: true, usage: first, deltas: 4}, record{usage: with(first, 7), partial: true}, call{usage: first, deltas: 6}, "at most 6"},
		"broken off, the relay wrote less than came":      {answer{end: cut, started: true, usage: first, deltas: 4}, record{usage: with(first, 3), partial: true}, call{usage: first, deltas: 6}, "at most 6"},
		"broken off, another input":                       {answer{end: cut, started: true, usage: first, deltas: 4}, record{usage: rig.Usage{Input: 4, Output: 4}, partial: true}, call{usage: first, deltas: 6}, "the client got"},
		"left before anything":                            {answer{end: left}, record{partial: true}, call{usage: first, deltas: 1}, ""},
		"left at the end":                                 {answer{end: left, started: true, usage: first, deltas: 4}, record{usage: whole}, call{usage: whole}, ""},
		"left at the end, the relay differs":              {answer{end: left, started: true, usage: first, deltas: 4}, record{usage: first}, call{usage: whole}, "the client left"},
		"refused":                                         {answer{end: refused, status: 529}, record{status: 529}, call{}, ""},
		"refused with another status":                     {answer{end: refused, status: 529}, record{status: 502}, call{}, "status 529"},
	} {
		t.Run(name, func(t *testing.T) {
			err := compare(tt.a, tt.r, tt.c)
			if tt.want == "" {
				assert.NoError(t, err)
				return
			}
			assert.ErrorContains(t, err, tt.want)
		})
	}
}

func TestTheLedgerWaitsForAllThree(t *testing.T) {
	u := rig.Usage{Input: 1, Output: 2}
	a, r, c := answer{id: "r1", upstream: "u1", end: complete, usage: u}, record{id: "r1", usage: u}, call{id: "u1", usage: u}
	steps := []func(*ledger){
		func(l *ledger) { l.addAnswer(a) },
		func(l *ledger) { l.addRecord(r) },
		func(l *ledger) { l.addCall(c) },
	}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		l := newLedger()
		for i, step := range order {
			steps[step](l)
			assert.Equal(t, i == 2, l.compared[complete] == 1, "%v, after %d", order, i+1)
		}
		got := l.close()
		assert.Empty(t, got.problems.first)
		assert.Equal(t, u, got.relay)
	}
	l := newLedger()
	l.addAnswer(a)
	l.addRecord(record{id: "of nobody"})
	assert.Equal(t, 2, l.close().problems.n)
}

func TestTheLogIsReadInAnyPieces(t *testing.T) {
	const text = `{"level":"info","request_id":"r1","path":"/v1/messages","attempts":3,"status":200,"input_tokens":1,"cache_write_tokens":2,"cache_read_tokens":3,"output_tokens":4,"partial":true,"tries":[{"input_tokens":5},{"input_tokens":1,"cache_write_tokens":2,"cache_read_tokens":3,"output_tokens":4}],"message":"request"}
{"level":"debug","path":"/livez","message":"request"}
{"level":"info","changed":["clients"],"message":"configuration reloaded"}
{"level":"error","error":"x","message":"the configuration was not reloaded; the one before stays in force"}
{"level":"warn","dropped":7,"message":"the log is too slow; records were dropped"}
{"level":"warn","message":"something"}
panic: a crash
`
	for _, size := range []int{1, 7, len(text)} {
		var got []record
		l := &relayLog{record: func(r record) { got = append(got, r) }}
		_, err := io.CopyBuffer(struct{ io.Writer }{l}, struct{ io.Reader }{strings.NewReader(text)}, make([]byte, size))
		require.NoError(t, err)
		line, _, _ := strings.Cut(text, "\n")
		assert.Equal(t, []record{{line: line, id: "r1", status: 200, partial: true, usage: rig.Usage{Input: 1, CacheWrite: 2, CacheRead: 3, Output: 4}}}, got)
		assert.Equal(t, []int{1, 1, 1, 7, 2, 2, 15}, []int{l.applied, l.refused, l.probesSeen(), l.lost, l.retries, l.warnings.n, l.tokens})
	}
}

// Each change of a round is a configuration that loads, or must not, and the last one is
// the first again.
func TestARoundOfChanges(t *testing.T) {
	p, err := newProvider(func(call) {})
	require.NoError(t, err)
	defer p.close()
	c := &changer{provider: p, keys: 2, settings: settings{dir: t.TempDir(), mainAddr: p.addr, other: p.addr, fallbackAddr: p.addr,
		keys: []string{mainKey(0), mainKey(1)}, tokens: []string{loadToken}, limit: 1000, level: "info"}}
	first := c.settings.yaml()
	for range changingKeys/2 + 1 { // each adds two; limits are the same again after two rounds
		for _, what := range changes {
			c.check(t, what)
		}
	}
	assert.Equal(t, first, c.settings.yaml())
}

// check makes one change and loads what it wrote.
func (c *changer) check(t *testing.T, what change) {
	t.Helper()
	before := c.settings.yaml()
	if what.edit != nil {
		c.settings.keys = slices.Clone(c.settings.keys)
		what.edit(c)
		require.NotEqual(t, before, c.settings.yaml(), what.name)
	}
	text := c.settings.yaml()
	if what.text != nil {
		text = what.text(text)
	}
	require.NoError(t, replace(c.settings.file(), text))
	_, err := config.Load(c.settings.file())
	require.Equal(t, what.text != nil, err != nil, "%s: %v", what.name, err)
}

func TestWaysOfWriting(t *testing.T) {
	for _, way := range ways {
		file := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(file, []byte(strings.Repeat("long ", 100)), 0o600))
		require.NoError(t, way.write(file, "short"))
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, "short", string(got))
	}
	assert.NotZero(t, len(changes)%len(ways), "each change is made in one way only")
}

func TestRemovedKeysThatCome(t *testing.T) {
	p := &provider{last: map[string]time.Time{}, retired: map[string]time.Time{}}
	now := time.Unix(1000, 0)
	p.retire("k", now)
	p.came("k", now)
	p.came("other", now.Add(time.Second))
	assert.Empty(t, p.lateKeys())
	p.came("k", now.Add(time.Second))
	assert.Len(t, p.lateKeys(), 1)
	p.admit("k")
	p.came("k", now.Add(2*time.Second))
	assert.Len(t, p.lateKeys(), 1)
	assert.NoError(t, p.cameSince("k", now.Add(2*time.Second)))
	assert.ErrorIs(t, p.cameSince("k", now.Add(3*time.Second)), errNotCome)
}

func TestSplitEvents(t *testing.T) {
	s := bufio.NewScanner(strings.NewReader("event: a\n\nevent: b\n\nevent"))
	s.Split(splitEvents)
	var got []string
	for s.Scan() {
		got = append(got, s.Text())
	}
	assert.Equal(t, []string{"event: a\n\n", "event: b\n\n"}, got)
	assert.ErrorContains(t, s.Err(), "inside a frame")
}

// Whatever trouble there is, what came through is the beginning of what was sent.
func TestTroubleLosesOnlyTheEnd(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789"), 2000)
	far, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = far.Close() }()
	go func() {
		for {
			c, err := far.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, bytes.NewReader(sent))
				_ = c.Close()
			}()
		}
	}()
	n, err := newNetwork(far.Addr().String())
	require.NoError(t, err)
	defer n.close()
	for seed := range uint64(10) {
		c, err := net.Dial("tcp", n.addr())
		require.NoError(t, err)
		n.trouble(rand.New(rand.NewPCG(seed, 0)))
		require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		got, _ := io.ReadAll(c)
		assert.True(t, bytes.HasPrefix(sent, got), "seed %d: %d bytes", seed, len(got))
		_ = c.Close()
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-for", "1ms"}, {"-shortest", "9s", "-longest", "8s"}, {"-rps", "-1"}} {
		assert.ErrorContains(t, run(t.Context(), args, io.Discard, io.Discard), "at least 1s", args)
	}
}

// A bench that cannot fail shows nothing.
func TestWhatIsWrong(t *testing.T) {
	good := func() *report {
		r := &report{options: options{length: time.Minute, reloads: 3}, load: &load{ends: map[end]int{}}, changer: &changer{done: 3, broken: 1}, log: &relayLog{refused: 1}}
		r.load.requests.Store(100)
		for i := range 20 {
			r.samples = append(r.samples, sample{at: time.Duration(i+1) * 3 * time.Second, rss: 50 << 20})
		}
		return r
	}
	require.Empty(t, good().wrong())
	one := problems{1, []string{"x 127.0.0.1:1"}}
	for name, spoil := range map[string]func(*report){
		"requests failed":    func(r *report) { r.load.bad = one },
		"streams were cut":   func(r *report) { r.load.cutStreams = one },
		"do not agree":       func(r *report) { r.account.problems = one },
		"had no effect":      func(r *report) { r.changer.missed = one },
		"with a removed key": func(r *report) { r.late = []string{"k"} },
		"dropped 1 records":  func(r *report) { r.log.lost = 1 },
		"refused 0 reloads":  func(r *report) { r.log.refused = 0 },
		"time for 2 changes": func(r *report) { r.changer.done = 2 },
		"ended with":         func(r *report) { r.stopped = errors.New("ended with 1") },
		"5 file descriptors": func(r *report) { r.after.fds = 5 },
		"minutes after":      func(r *report) { r.after.idle = 1 },
		"9 goroutines":       func(r *report) { r.after.goroutines = 9 },
		"held at keys":       func(r *report) { r.after.held = 1 },
		"metrics count":      func(r *report) { r.after.told, r.after.tokens = true, 1 },
		"memory grew":        func(r *report) { r.samples[18].rss, r.samples[19].rss = 80<<20, 80<<20 },
		"the heap is":        func(r *report) { r.after.heap = 30 << 20 },
		"1 answers were cut": func(r *report) { r.mixed, r.load.ends[cut] = true, 1 },
		"2 of 100 requests":  func(r *report) { r.mixed, r.load.ends[refused] = true, 2 },
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			spoil(r)
			require.Len(t, r.wrong(), 1)
			assert.Contains(t, r.wrong()[0], name)
			assert.Contains(t, r.text(), "WRONG: ")
			assert.Contains(t, r.section(), "Failed:")
			assert.NotContains(t, r.section(), "127.0.0.1")
		})
	}
	assert.Contains(t, good().text(), "passed")
	assert.Contains(t, good().section(), "Passed.")
}

func TestFlat(t *testing.T) {
	const mib = 1 << 20
	assert.True(t, flat(100*mib, 118*mib))
	assert.False(t, flat(100*mib, 119*mib))
	assert.True(t, flat(0, 0))
}
