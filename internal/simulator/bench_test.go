package simulator_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"cc-relay/internal/simulator"
)

func BenchmarkAdmit(b *testing.B) {
	core, err := simulator.NewCore(oneOrg(simulator.Limits{RPM: 50_000_000, ITPM: 50_000_000, OTPM: 50_000_000}), epoch)
	if err != nil {
		b.Fatal(err)
	}
	blocks := join(row(1, 60), []simulator.Block{block(61, 100, short)})
	now := epoch
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		call, err := core.Admit(now, simulator.Demand{Org: "org-a", Model: "claude-opus-5-5", Blocks: blocks, MaxTokens: 1000})
		if err != nil {
			b.Fatal(err)
		}
		call.Begin(now)
		call.Produce(now, 100)
		call.End(now)
	}
}

// discard is a client that reads everything and keeps nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
func (d discard) Flush()                      {}

func BenchmarkMessages(b *testing.B) {
	content := strings.TrimSuffix(strings.Repeat(blockJSON(bigText, "")+",", 50), ",")
	large := body(`"messages":[{"role":"user","content":[` + content + `]}],"stream":true`)
	for name, sent := range map[string]string{"small-json": say("hi", false, 50), "small-stream": say("hi", true, 200), "200KB-stream": large} {
		b.Run(name, func(b *testing.B) {
			sim := newSim(b, oneOrg(simulator.Limits{}))
			b.SetBytes(int64(len(sent)))
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest(http.MethodPost, "/v1/messages", strings.NewReader(sent))
				r.Header.Set("X-Api-Key", "k1")
				r.Header.Set("Anthropic-Version", "2023-06-01")
				sim.ServeHTTP(discard{header: http.Header{}}, r)
			}
		})
	}
}
