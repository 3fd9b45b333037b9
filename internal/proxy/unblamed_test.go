package proxy_test

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/proxy"
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
