package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// slow is the URL of a way to another one whose bytes take so many milliseconds each
// way, give or take.
func slow(t *testing.T, url string, latency, jitter int) string {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(server, t.Name(), "127.0.0.1:0", strings.TrimPrefix(url, "http://"))
	require.NoError(t, p.Start())
	t.Cleanup(p.Stop)
	for _, way := range []string{"upstream", "downstream"} {
		toxic := fmt.Sprintf(`{"type":"latency","stream":%q,"attributes":{"latency":%d,"jitter":%d}}`, way, latency, jitter)
		_, err := p.Toxics.AddToxicJson(strings.NewReader(toxic))
		require.NoError(t, err)
	}
	return "http://" + p.Listen
}

// answered sends a request and checks that its answer comes whole; it returns how long
// that took.
func answered(t *testing.T, client *http.Client, url, key string, stream bool) time.Duration {
	body := fmt.Sprintf(`{"model":"claude-opus-5-5","max_tokens":64,"stream":%t,"messages":[{"role":"user","content":"hello"}]}`, stream)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+modelCall, strings.NewReader(body))
	if !assert.NoError(t, err) {
		return 0
	}
	req.Header = http.Header{"X-Api-Key": {key}, "Anthropic-Version": {"2023-06-01"}, "Content-Type": {"application/json"}}
	start := time.Now()
	resp, err := client.Do(req)
	if !assert.NoError(t, err) {
		return 0
	}
	got, err := io.ReadAll(resp.Body)
	took := time.Since(start)
	assert.NoError(t, err)
	assert.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusOK, resp.StatusCode, "%s", got)
	assert.NotContains(t, string(got), `"type":"error"`)
	if stream {
		assert.Contains(t, string(got), "message_stop")
	}
	return took
}

// Bytes that take 100 to 300 ms each way, before the relay and behind it, cost no
// request, and the relay adds no round trip of its own.
func testASlowNetwork(t *testing.T) {
	t.Run("jitter", func(t *testing.T) {
		p := startProvider(t, nil)
		p.url = slow(t, p.url, 200, 100)
		r := startRelay(t, p)
		url := slow(t, r.url(), 200, 100)
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
		t.Cleanup(client.CloseIdleConnections)
		var wg sync.WaitGroup
		for n := range 16 {
			wg.Go(func() {
				for turn := range 3 {
					answered(t, client, url, relayToken, (n+turn)%2 == 0)
				}
			})
		}
		wg.Wait()
		assert.Len(t, p.Seen(), 48, "nothing is sent twice")
		assert.Empty(t, r.log.failures())
	})
	t.Run("latency", func(t *testing.T) {
		const way = 100 * time.Millisecond
		p := startProvider(t, nil)
		p.url = slow(t, p.url, int(way.Milliseconds()), 0)
		r := startRelay(t, p)
		client := &http.Client{Transport: &http.Transport{}}
		t.Cleanup(client.CloseIdleConnections)
		var direct, relayed []time.Duration
		for n := range 12 {
			direct = append(direct, answered(t, client, p.url, keyA, n%2 == 0))
			relayed = append(relayed, answered(t, client, r.url(), relayToken, n%2 == 0))
		}
		added := median(relayed) - median(direct)
		t.Logf("direct %s, relayed %s in the median", median(direct), median(relayed))
		assert.GreaterOrEqual(t, median(direct), 2*way)
		assert.Less(t, added, way/2)
	})
}
