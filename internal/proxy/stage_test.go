package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
)

// asked is a request as an actor got it.
type asked struct {
	at     time.Time
	model  string
	body   string
	key    string
	stream bool
}

// act is how a provider answers a request.
type act func(w http.ResponseWriter, r *http.Request, q asked)

// actor is a provider on the pipes that can be told at any time how to fare.
type actor struct {
	*piped
	play  act
	seen  []asked
	dials bool // no connection comes about
}

// actor starts a provider with one key. Its pool waits, as pools do: two requests
// find out what a key that has not answered yet admits.
func (p *pipes) actor(t testing.TB, name string, play act) *actor {
	a := &actor{play: play}
	a.piped = p.handler(t, name, http.HandlerFunc(a.serveHTTP))
	a.keys, a.maxWait = []string{keyOf(name, 1)}, 3*time.Second
	wire := a.transport
	a.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		a.mu.Lock()
		refuses := a.dials
		if refuses {
			a.seen = append(a.seen, asked{at: time.Now()})
		}
		a.mu.Unlock()
		if refuses {
			_ = r.Body.Close()
			return nil, &provider.ConnectError{}
		}
		return wire.RoundTrip(r)
	})
	return a
}

func (a *actor) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	req, err := messages.Inspect(body, 1)
	if err != nil {
		panic(err)
	}
	q := asked{at: time.Now(), model: string(req.Model), body: string(body), key: r.Header.Get("X-Api-Key"), stream: req.Stream}
	a.mu.Lock()
	a.seen = append(a.seen, q)
	play := a.play
	a.mu.Unlock()
	play(w, r, q)
}

// fares tells the provider how to answer what comes from now on.
func (a *actor) fares(play act) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.play, a.dials = play, false
}

// refuses lets no connection come about from now on.
func (a *actor) refuses() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dials = true
}

// got is what the provider was asked, in order.
func (a *actor) got() []asked {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]asked(nil), a.seen...)
}

// between counts the requests that came from one moment to before another.
func (a *actor) between(from, to time.Time) int {
	n := 0
	for _, q := range a.got() {
		if !q.at.Before(from) && q.at.Before(to) {
			n++
		}
	}
	return n
}

// after is when the first request came that did not come before from.
func (a *actor) after(t testing.TB, from time.Time) time.Time {
	t.Helper()
	for _, q := range a.got() {
		if !q.at.Before(from) {
			return q.at
		}
	}
	require.FailNow(t, "the provider was not asked any more")
	return time.Time{}
}

// cast starts a relay before these providers, on their pipes.
func (p *pipes) cast(t testing.TB, routes router.Config, actors ...*actor) *relay {
	s := setup{pipes: p, routes: routes}
	for _, a := range actors {
		s.upstreams = append(s.upstreams, a.upstream)
	}
	return newRelay(t, s)
}

// lane is what the relay knows of a provider's health for a model.
func (r *relay) lane(name, model string) *router.Lane {
	for _, up := range r.live.Router.Upstreams() {
		if up.Provider.Name() == name {
			return up.Lane(keypool.ClassOf(model))
		}
	}
	panic("no provider " + name)
}

// holdClosed lets all requests for opus through to these providers, however they fare.
func (r *relay) holdClosed(names ...string) {
	for _, name := range names {
		r.lane(name, opus).Hold(health.Closed, time.Hour)
	}
}

// requireSamples checks what the breaker of a provider has been told for opus.
func (r *relay) requireSamples(t testing.TB, name string, successes, failures int) {
	t.Helper()
	s := r.lane(name, opus).Status()
	bad := int(s.Failures*float64(s.Samples) + 0.5)
	assert.Equal(t, [2]int{successes, failures}, [2]int{s.Samples - bad, bad}, "successes and failures that the breaker of %s was told of", name)
}

// well serves, at once.
func well(w http.ResponseWriter, _ *http.Request, q asked) {
	kind, body := "application/json", message
	if q.stream {
		kind, body = "text/event-stream", wholeStream
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Request-Id", "req_well")
	_, _ = io.WriteString(w, body)
}

// after lets a provider take its time before it answers.
func after(d time.Duration, play act) act {
	return func(w http.ResponseWriter, r *http.Request, q asked) {
		select {
		case <-time.After(d):
			play(w, r, q)
		case <-r.Context().Done():
		}
	}
}

// answers gives this error.
func answers(code int) act {
	return func(w http.ResponseWriter, _ *http.Request, _ asked) {
		kind := messages.TypeOfStatus(code)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Request-Id", "req_"+itoa(code))
		w.WriteHeader(code)
		_, _ = io.WriteString(w, `{"type":"error","error":{"type":"`+string(kind)+`","message":"as told"}}`)
	}
}

// silent says nothing for as long as somebody listens.
func silent(_ http.ResponseWriter, r *http.Request, _ asked) { <-r.Context().Done() }

// hangsUp breaks the connection.
func hangsUp(http.ResponseWriter, *http.Request, asked) { panic(http.ErrAbortHandler) }

// sends streams these parts, each flushed, and then acts on; nil: the answer ends well.
func sends(then act, parts ...string) act {
	return func(w http.ResponseWriter, r *http.Request, q asked) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Request-Id", "req_parts")
		for _, p := range append([]string{""}, parts...) {
			_, _ = io.WriteString(w, p)
			_ = http.NewResponseController(w).Flush()
		}
		if then != nil {
			then(w, r, q)
		}
	}
}

// byModel fares otherwise for models of this name's beginning.
func byModel(prefix string, these, others act) act {
	return func(w http.ResponseWriter, r *http.Request, q asked) {
		if strings.HasPrefix(q.model, prefix) {
			these(w, r, q)
			return
		}
		others(w, r, q)
	}
}

// load sends so many requests a second for so long, evenly, streams and JSON by
// turns, and returns when all are answered.
func load(r *relay, rate int, during time.Duration) *outcomes {
	got := &outcomes{}
	var wg sync.WaitGroup
	for n := range int(during.Seconds() * float64(rate)) {
		wg.Go(func() { got.add(r.do(call{body: ask(opus, n%2 == 0)})) })
		time.Sleep(time.Second / time.Duration(rate))
	}
	wg.Wait()
	return got
}

// tally counts the answers of each provider as clients see them.
func tally(t testing.TB, r *relay, n int, c call) map[string]int {
	t.Helper()
	at := map[string]int{}
	for range n {
		got := r.do(c)
		require.Equal(t, 200, got.status, got.body)
		at[got.header.Get("X-Cc-Relay-Provider")]++
	}
	return at
}
