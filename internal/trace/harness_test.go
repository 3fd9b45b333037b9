package trace_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"cc-relay/internal/secret"
	"cc-relay/internal/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const version = "1.2.3"

// receiver is a collector. It hangs up after each answer: a bubble's clock stands
// still while one of its connections is open.
type receiver struct {
	*httptest.Server
	seen     atomic.Int32 // requests of any kind
	mu       sync.Mutex
	requests []*http.Request // guarded by mu
	got      []*collector.ExportTraceServiceRequest
	answer   func(n int, w http.ResponseWriter) // to the nth request, from 1; nil: 200
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter)) *receiver {
	r := newUnstarted(answer)
	r.Start()
	t.Cleanup(r.Close)
	return r
}

func newUnstarted(answer func(n int, w http.ResponseWriter)) *receiver {
	r := &receiver{answer: answer}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.SetKeepAlivesEnabled(false)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.seen.Add(1)
	body, err := io.ReadAll(req.Body)
	var msg collector.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(body, &msg) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.requests = append(r.requests, req)
	r.got = append(r.got, &msg)
	n := len(r.got)
	r.mu.Unlock()
	if r.answer != nil {
		r.answer(n, w)
	}
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

// spans are all that have come.
func (r *receiver) spans() (all []*otlp.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, msg := range r.got {
		for _, rs := range msg.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				all = append(all, ss.Spans...)
			}
		}
	}
	return all
}

// values are attributes, in the types of Go.
func values(kvs []*common.KeyValue) map[string]any {
	m := map[string]any{}
	for _, kv := range kvs {
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			m[kv.Key] = v.IntValue
		default:
			m[kv.Key] = "a type the test does not know"
		}
	}
	return m
}

// told collects what a Tracer reports.
type told struct {
	mu   sync.Mutex
	errs []string // guarded by mu
}

func (f *told) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, err.Error())
}

func (f *told) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.errs
}

func start(t *testing.T, cfg trace.Config, failed func(error)) *trace.Tracer {
	tr, err := trace.New(cfg, version, failed)
	require.NoError(t, err)
	require.NotNil(t, tr)
	t.Cleanup(func() { _ = tr.Close(t.Context()) })
	return tr
}

func header(traceparent ...string) http.Header { return http.Header{"Traceparent": traceparent} }

// oneRequest traces the smallest request there is.
func oneRequest(tr *trace.Tracer) {
	tr.Start(nil, time.Now(), "POST", "/v1/messages").End(trace.Result{Status: 200})
}

func secrets(kv ...string) map[string]secret.Value {
	m := map[string]secret.Value{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = secret.New(kv[i+1])
	}
	return m
}

func closed(t *testing.T, tr *trace.Tracer) { assert.NoError(t, tr.Close(context.Background())) }
