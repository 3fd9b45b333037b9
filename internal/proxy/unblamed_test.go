package proxy_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/simulator"
)

// A query that no request line can hold comes through over HTTP/2. It is the client's
// mistake, and closes no provider to others.
func TestAQueryThatCannotBeSentBlamesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.actor(t, "a", well)
		r := newRelay(t, setup{upstreams: []upstream{a.upstream}, pipes: net})
		r.overHTTP2(t, net)
		for range 8 {
			req := r.request(call{body: ask(opus, false)})
			req.URL.RawQuery = "a=b c"
			resp, err := r.client.RoundTrip(req)
			require.NoError(t, err)
			requireError(t, readReply(resp), 400, "invalid_request_error")
			r.log.next(t)
		}
		assert.Empty(t, a.got())
		assert.Equal(t, health.Closed, r.lane("a", opus).Status().State)
	})
}

// What a client wrote as a model is as printable in what was left out as elsewhere.
func TestWhatWasLeftOutIsPrintable(t *testing.T) {
	a, b := newSim(t, "a", 1), newSim(t, "b", 1)
	r := relayOf(t, a, b)
	r.live.Router.Upstreams()[0].SetDraining(true)
	got := r.do(call{body: ask("x"+bobToken+`\u001b[31m`, false)})
	var account proxy.Account
	require.Eventually(t, func() (ok bool) {
		account, ok = r.handler.Explain(got.header.Get("X-Cc-Relay-Request-Id"))
		return ok
	}, patient, time.Millisecond)
	require.Len(t, account.Skipped, 1)
	assert.Equal(t, account.Model, account.Skipped[0].Model)
	text, err := json.Marshal(account)
	require.NoError(t, err)
	assert.NotContains(t, string(text), bobToken)
	assert.NotContains(t, account.Skipped[0].Model, "\x1b")
}

// The provider has told what it has counted before the client left.
func TestUsageOfAClientThatLeftBeforeContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.actor(t, "a", sends(silent, headFrame))
		r := newRelay(t, setup{upstreams: []upstream{a.upstream}, pipes: net})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := r.client.RoundTrip(r.request(call{body: ask(opus, true)}).WithContext(ctx))
		require.Error(t, err)
		record := r.log.next(t)
		assert.Equal(t, "client_gone", record["outcome"])
		assert.Equal(t, true, record["partial"])
		assert.InDelta(t, 11, record["input_tokens"], 0)
	})
}

func TestARelayWhoseKeysAreOffIsNotReady(t *testing.T) {
	a := newSim(t, "a", 2)
	r := relayOf(t, a)
	pool := r.live.Router.Upstreams()[0].Pool
	keys := pool.Keys()
	ready := func() int { return r.send(call{method: "GET", path: "/readyz", token: "-"}).status }
	require.NoError(t, pool.Disable(keys[0].ID))
	assert.Equal(t, 200, ready())
	require.NoError(t, pool.Disable(keys[1].ID))
	assert.Equal(t, 503, ready())
	require.NoError(t, pool.Enable(keys[1].ID))
	assert.Equal(t, 200, ready())
}

// A prompt that is too large for one provider, and another that could hold it fails for
// the moment: the client is told to come back, not to give up.
func TestTooLargeForOneProviderOnly(t *testing.T) {
	for name, tt := range map[string]struct {
		fault  simulator.Fault
		status int
	}{"529": {status(529), 529}, "429": {limit429("5"), 429}, "500": {status(500), 500}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				b := net.sim(t, "b", simulator.Config{Organizations: []simulator.Organization{owner("b", 1, simulator.Limits{ITPM: 100_000})}})
				r, _ := oversizeRelay(t, net, []*sim{b}, limit429("30"))
				require.NoError(t, b.SetFaults([]simulator.Fault{tt.fault}))
				got := r.do(call{body: tooLarge})
				assert.Equal(t, tt.status, got.status)
				assert.NotEqual(t, "false", got.header.Get("X-Should-Retry"))
				assert.NotContains(t, got.body, "no wait helps")
				require.NoError(t, b.SetFaults(nil))
				time.Sleep(20 * time.Second)
				assert.Equal(t, 200, r.do(call{body: tooLarge}).status)
			})
		})
	}
}

// What one provider says after the wait for it does not hide that another has room soon.
func TestTheEarliestOfAllProvidersIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuses := func(after string) act {
			return func(w http.ResponseWriter, _ *http.Request, _ asked) {
				w.Header().Set("Retry-After", after)
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusTooManyRequests)
				_, _ = io.WriteString(w, `{"type":"error","error":{"type":"rate_limit_error","message":"x"}}`)
			}
		}
		net := newPipes()
		a, b := net.actor(t, "a", refuses("5")), net.actor(t, "b", refuses("2"))
		r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}, pipes: net})
		time.AfterFunc(time.Second, func() { b.fares(refuses("3000")) })
		got := r.do(call{body: ask(opus, false)})
		assert.Equal(t, 429, got.status)
		assert.Equal(t, 2*time.Second, waited(t, got))
		assert.Equal(t, "3", got.header.Get("Retry-After"), "5 s, of which 2 have passed")
	})
}

// Bodies that are only announced keep nobody out.
func TestAnnouncedBodiesTakeNoRoom(t *testing.T) {
	leakFree(t)
	r := relayOf(t, newSim(t, "a", 1))
	for range proxy.DefaultBodiesBytes/proxy.DefaultMaxBodyBytes + 1 {
		_, err := io.WriteString(r.dial(), "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nAuthorization: Bearer "+bobToken+
			"\r\nContent-Length: "+itoa(proxy.DefaultMaxBodyBytes)+"\r\n\r\n{")
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return r.handler.Active() == proxy.DefaultBodiesBytes/proxy.DefaultMaxBodyBytes+1 }, patient, time.Millisecond)
	assert.Equal(t, 200, r.send(call{body: ask(opus, false)}).status)
}

// A body that there is no room for in the middle is refused at once, whatever is left of
// it and however long the client pauses. What is left here is so little that net/http
// would wait for it.
func TestABodyIsShedInTheMiddle(t *testing.T) {
	leakFree(t)
	r := newRelay(t, setup{upstreams: []upstream{newSim(t, "a", 1).upstream}, Config: proxy.Config{BodiesBytes: 1 << 20}})
	head := func(size string) string {
		return "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nAuthorization: Bearer " + bobToken + "\r\n" + size + "\r\n\r\n"
	}
	const others = 14 // each of the least that is taken
	for range others {
		_, err := io.WriteString(r.dial(), head("Content-Length: 65536"))
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return r.handler.Active() == others }, patient, time.Millisecond)
	time.Sleep(100 * time.Millisecond) // they are at work, and take their room next
	for name, sent := range map[string]string{
		"announced": head("Content-Length: 300000") + strings.Repeat(" ", 140_000),
		"in chunks": head("Transfer-Encoding: chunked") + "493e0\r\n" + strings.Repeat(" ", 140_000),
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			_, _ = io.WriteString(c, sent) // it may be refused before it is all sent
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			assert.Equal(t, 529, resp.StatusCode)
			assert.True(t, resp.Close)
			require.NoError(t, resp.Body.Close())
		})
	}
}

// A key that was refused is tried once more. Whatever that request meets, once the
// credential was read the key serves again.
func TestAProbeOfACredentialThatMeetsSomethingElse(t *testing.T) {
	for code, back := range map[int]bool{400: true, 403: true, 404: true, 413: false, 429: true, 529: false, 401: false} {
		t.Run(itoa(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{})}})
				r := net.relay(t, a)
				first, probe := status(401), status(code)
				first.Nth, probe.Nth = 1, 2
				require.NoError(t, a.SetFaults(faults(first, probe)))
				require.Equal(t, 502, r.do(call{body: ask(opus, false)}).status)
				time.Sleep(5*time.Minute + time.Second)
				r.do(call{body: ask(opus, false)})
				require.Len(t, a.Seen(), 2)
				time.Sleep(2 * time.Second)
				got := r.do(call{body: ask(opus, false)})
				if back {
					requireServed(t, got, false)
					return
				}
				assert.Equal(t, 502, got.status)
				assert.Len(t, a.Seen(), 2)
			})
		})
	}
}

// A page of what stands before a provider says nothing of a credential.
func TestAPageDoesNotBringARefusedKeyBack(t *testing.T) {
	for _, code := range []int{400, 403, 404, 429} {
		t.Run(itoa(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				var n atomic.Int32
				a := net.actor(t, "a", nil)
				a.fares(func(w http.ResponseWriter, r *http.Request, q asked) {
					if n.Add(1) == 2 {
						w.Header().Set("Content-Type", "text/html")
						w.WriteHeader(code)
						_, _ = io.WriteString(w, "<html>blocked by the firewall</html>")
						return
					}
					answers(401)(w, r, q)
				})
				r := net.cast(t, router.Config{}, a)
				r.do(call{body: ask(opus, false)})
				time.Sleep(5*time.Minute + time.Second)
				r.do(call{body: ask(opus, false)})
				time.Sleep(2 * time.Second)
				r.do(call{body: ask(opus, false)})
				assert.EqualValues(t, 2, n.Load(), "requests at the provider")
			})
		})
	}
}
