package trace_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"cc-relay/internal/secret"
	"cc-relay/internal/trace"
)

const canary = "canary-0123456789"

// deadAddress is one where nobody listens.
func deadAddress(*testing.T) string { return "http://127.0.0.1:1" } // a port that nobody is ever given

func TestNewRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  trace.Config
		want string
	}{
		"no URL":              {trace.Config{Endpoint: "collector:4318/" + canary}, "tracing.endpoint: no URL of an OTLP/HTTP collector; write one such as https://collector:4318"},
		"odd port":            {trace.Config{Endpoint: "http://collector:" + canary}, "tracing.endpoint: no URL of an OTLP/HTTP collector; write one such as https://collector:4318"},
		"no host":             {trace.Config{Endpoint: "https:///v1/traces"}, "tracing.endpoint: no URL of an OTLP/HTTP collector; write one such as https://collector:4318"},
		"grpc":                {trace.Config{Endpoint: "grpc://collector:4317"}, "tracing.endpoint: no URL of an OTLP/HTTP collector; write one such as https://collector:4318"},
		"password":            {trace.Config{Endpoint: "https://u:" + canary + "@collector"}, "tracing.endpoint: holds a user or password; put credentials into tracing.headers"},
		"fragment":            {trace.Config{Endpoint: "https://collector/#" + canary}, "tracing.endpoint: ends in a #fragment; leave it out"},
		"sample too large":    {trace.Config{Endpoint: "https://collector", Sample: 100}, "tracing.sample: 100 is no share; write a number from 0 to 1"},
		"negative sample":     {trace.Config{Endpoint: "https://collector", Sample: -0.1}, "tracing.sample: -0.1 is no share; write a number from 0 to 1"},
		"sample no number":    {trace.Config{Endpoint: "https://collector", Sample: math.NaN()}, "tracing.sample: NaN is no share; write a number from 0 to 1"},
		"name of a header":    {trace.Config{Endpoint: "https://collector", Headers: secrets("x-key: "+canary, "x")}, "tracing.headers: a name is empty or holds other characters than letters, digits, - _ and .; write it left of the colon, its value right"},
		"empty name":          {trace.Config{Endpoint: "https://collector", Headers: secrets("", canary)}, "tracing.headers: a name is empty or holds other characters than letters, digits, - _ and .; write it left of the colon, its value right"},
		"header of our own":   {trace.Config{Endpoint: "https://collector", Headers: secrets("content-type", canary)}, "tracing.headers: content-type is set by the relay itself; leave it out"},
		"line break":          {trace.Config{Endpoint: "https://collector", Headers: secrets("x-key", canary+"\r\nx: y")}, "tracing.headers: the value of x-key holds a line break or another control character"},
		"empty header":        {trace.Config{Endpoint: "https://collector", Headers: map[string]secret.Value{"x-key": {}}}, "tracing.headers: the value of x-key is empty"},
		"credential in clear": {trace.Config{Endpoint: "http://collector:4318", Headers: secrets("x-key", canary)}, "tracing.headers: x-key would cross the network in clear; make tracing.endpoint https, or use a collector on this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := trace.New(tc.cfg, version, nil)
			assert.Nil(t, tr)
			assert.EqualError(t, err, tc.want)
			assert.NotContains(t, err.Error(), canary)
		})
	}
}

func TestEveryMistakeIsTold(t *testing.T) {
	cfg := trace.Config{Endpoint: "http://collector", Sample: 2, Headers: secrets("host", canary, "x-key", canary)}
	assert.EqualError(t, cfg.Validate(), `tracing.sample: 2 is no share; write a number from 0 to 1
tracing.headers: host is set by the relay itself; leave it out
tracing.headers: x-key would cross the network in clear; make tracing.endpoint https, or use a collector on this machine`)
	assert.NoError(t, trace.Config{Endpoint: "http://[::1]:4318", Headers: secrets("x-key", canary)}.Validate())
	assert.NoError(t, trace.Config{Sample: 2}.Validate(), "off")
}

func TestPathOfTheEndpoint(t *testing.T) {
	for written, want := range map[string]string{
		"": "/v1/traces", "/": "/v1/traces", "?a=b": "/v1/traces?a=b", "/otlp/v1/traces": "/otlp/v1/traces", "/otlp/": "/otlp/",
	} {
		t.Run(written, func(t *testing.T) {
			rec := newReceiver(t, nil)
			tr := start(t, trace.Config{Endpoint: rec.URL + written, Sample: 1}, nil)
			oneRequest(tr)
			closed(t, tr)
			assert.Equal(t, want, rec.requests[0].URL.String())
		})
	}
}

func TestSpansAreSentEverySeconds(t *testing.T) {
	rec := newReceiver(t, nil)
	synctest.Test(t, func(t *testing.T) {
		tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
		oneRequest(tr)
		time.Sleep(4 * time.Second)
		assert.Equal(t, 0, rec.count())
		time.Sleep(2 * time.Second)
		assert.Equal(t, 1, rec.count())
		time.Sleep(time.Hour)
		assert.Equal(t, 1, rec.count(), "nothing to send, nothing sent")
		oneRequest(tr)
		closed(t, tr)
		assert.Equal(t, 2, rec.count())
	})
}

func TestAFullBatchIsSentAtOnce(t *testing.T) {
	rec := newReceiver(t, nil)
	synctest.Test(t, func(t *testing.T) {
		tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
		for range 512 {
			oneRequest(tr)
		}
		time.Sleep(time.Second)
		assert.Len(t, rec.spans(), 512)
		assert.Zero(t, tr.Dropped())
	})
}

func TestAFailedExportIsTriedAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		after  string
		least  time.Duration
		tries  int
	}{
		"503":                    {status: 503, tries: 2},
		"429":                    {status: 429, tries: 2},
		"502":                    {status: 502, tries: 2},
		"504":                    {status: 504, tries: 2},
		"503, Retry-After":       {status: 503, after: "20", least: 20 * time.Second, tries: 2},
		"503, odd Retry-After":   {status: 503, after: "soon", tries: 2},
		"503, long Retry-After":  {status: 503, after: "86400", least: 30 * time.Second, tries: 2},
		"503, Retry-After, past": {status: 503, after: "-5", tries: 2},
		"400":                    {status: 400, tries: 1},
		"500":                    {status: 500, tries: 1},
		"307":                    {status: 307, tries: 1},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newReceiver(t, func(n int, w http.ResponseWriter) {
				if n == 1 {
					w.Header().Set("Retry-After", tc.after)
					w.Header().Set("Location", "/elsewhere")
					w.WriteHeader(tc.status)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
				oneRequest(tr)
				time.Sleep(5500 * time.Millisecond)
				time.Sleep(max(tc.least-time.Second, 0))
				assert.Equal(t, 1, rec.count())
				time.Sleep(time.Minute)
				assert.Equal(t, tc.tries, rec.count())
				assert.Equal(t, uint64(2-tc.tries), tr.Dropped())
			})
		})
	}
}

func TestABatchIsGivenUpAfterFiveTries(t *testing.T) {
	rec := newReceiver(t, func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) })
	synctest.Test(t, func(t *testing.T) {
		tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
		oneRequest(tr)
		time.Sleep(time.Hour)
		assert.Equal(t, 5, rec.count())
		assert.Equal(t, uint64(1), tr.Dropped())
		closed(t, tr)
	})
}

func TestAnAbsentCollectorIsToldOnceAMinuteAndHoldsUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f told
		address := deadAddress(t)
		tr := start(t, trace.Config{Endpoint: address + "/?token=" + canary, Sample: 1, Headers: secrets("authorization", "Bearer "+canary)}, f.fail)
		for range 600 {
			before := time.Now()
			for range 10 {
				oneRequest(tr)
			}
			assert.Equal(t, before, time.Now(), "a request waited")
			time.Sleep(time.Second)
		}
		errs := f.all()
		require.NotEmpty(t, errs)
		assert.LessOrEqual(t, len(errs), 10)
		assert.Contains(t, errs[0], "trace: spans do not reach the collector at "+address+": dial tcp")
		assert.Contains(t, errs[len(errs)-1], " lost since the start)")
		assert.NotContains(t, strings.Join(errs, "\n"), canary)
		assert.Positive(t, tr.Dropped())

		err := tr.Close(t.Context())
		require.Error(t, err)
		assert.NotContains(t, err.Error(), canary)
		assert.Equal(t, uint64(6000), tr.Dropped(), "each span is counted once")
	})
}

func TestPendingSpansAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f told
		tr := start(t, trace.Config{Endpoint: deadAddress(t), Sample: 1}, f.fail)
		for range 10_000 {
			oneRequest(tr)
		}
		assert.GreaterOrEqual(t, tr.Dropped(), uint64(10_000-2*2048))
		assert.Error(t, tr.Close(t.Context()))
		assert.Equal(t, uint64(10_000), tr.Dropped())
	})
}

func TestWhatTheCollectorRejectsIsTold(t *testing.T) {
	rec := newReceiver(t, func(_ int, w http.ResponseWriter) {
		b, _ := proto.Marshal(&collector.ExportTraceServiceResponse{PartialSuccess: &collector.ExportTracePartialSuccess{RejectedSpans: 2, ErrorMessage: canary}})
		_, _ = w.Write(b)
	})
	var f told
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, f.fail)
	twoAttempts(tr, nil, time.Now())
	assert.Error(t, tr.Close(t.Context()))
	assert.Equal(t, []string{"trace: spans do not reach the collector at " + rec.URL + ": it took a batch but for 2 spans of 3; its own log says why (2 lost since the start)"}, f.all())
	assert.Equal(t, uint64(2), tr.Dropped())
}

// Each answer repeats the request, as some collectors and wrong addresses do.
func TestNoErrorHoldsASecret(t *testing.T) {
	echo := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Echo", r.Header.Get("Authorization"))
			w.Header().Set("Location", r.URL.String())
			w.WriteHeader(status)
			_, _ = io.WriteString(w, r.URL.String()+r.Header.Get("Authorization"))
		}
	}
	raw := func(answer func(request string) string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		over := make(chan struct{})
		t.Cleanup(func() { _ = l.Close(); <-over })
		go func() {
			defer close(over)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				b := make([]byte, 64<<10)
				n, _ := conn.Read(b)
				_, _ = io.WriteString(conn, answer(string(b[:n])))
				_ = conn.Close()
			}
		}()
		return "http://" + l.Addr().String()
	}
	for name, tc := range map[string]struct {
		url  string
		want string
	}{
		"echo server":          {raw(func(s string) string { return s }), "what it answers is no HTTP; check the port of tracing.endpoint, usually 4318"},
		"secret as a status":   {raw(func(string) string { return "HTTP/1.1 " + canary + "\r\n\r\n" }), "what it answers is no HTTP"},
		"secret as a header":   {raw(func(string) string { return "HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n" }), "what it answers is no HTTP"},
		"hangs up":             {raw(func(string) string { return "" }), "it closed the connection without an answer"},
		"TLS spoken to plain":  {strings.Replace(raw(func(s string) string { return "HTTP/1.1 400 Bad Request\r\n\r\n" }), "http", "https", 1), "it speaks no TLS; make tracing.endpoint http, or turn TLS on there"},
		"unknown certificate":  {serve(t, httptest.NewTLSServer(echo(200))), "tls: failed to verify certificate"},
		"unauthorized":         {serve(t, httptest.NewServer(echo(401))), "it answered 401: check tracing.headers"},
		"not found":            {serve(t, httptest.NewServer(echo(404))), "it answered 404: check the path of tracing.endpoint, usually /v1/traces"},
		"wrong media type":     {serve(t, httptest.NewServer(echo(415))), "it answered 415: tracing.endpoint must speak OTLP over HTTP with protobuf, usually port 4318"},
		"redirect":             {serve(t, httptest.NewServer(echo(302))), "it answered 302, and redirects are not followed: make tracing.endpoint the address it points to"},
		"server error":         {serve(t, httptest.NewServer(echo(500))), "it answered 500 ("},
		"nobody there":         {deadAddress(t), "connection refused"},
		"an answer of its own": {serve(t, httptest.NewServer(echo(200))), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var f told
			tr := start(t, trace.Config{Endpoint: tc.url + "/" + canary + "?token=" + canary, Sample: 1, Headers: secrets("Authorization", "Bearer "+canary)}, f.fail)
			oneRequest(tr)
			err := tr.Close(t.Context())
			if tc.want == "" {
				assert.NoError(t, err)
				assert.Empty(t, f.all())
				return
			}
			require.Len(t, f.all(), 1)
			assert.Contains(t, f.all()[0], tc.want)
			for e := err; e != nil; e = errors.Unwrap(e) {
				assert.NotContains(t, fmt.Sprintf("%v %+v %#v", e, e, e), canary)
			}
			assert.NotContains(t, f.all()[0], canary)
		})
	}
}

func serve(t *testing.T, s *httptest.Server) string {
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s.URL
}

func TestASecretIsInNoSpan(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1, Headers: secrets("authorization", canary)}, nil)
	twoAttempts(tr, http.Header{"Authorization": {canary}, "X-Api-Key": {canary}, "Baggage": {canary}, "Tracestate": {"a=" + canary}, "Traceparent": {canary}}, time.Now())
	closed(t, tr)
	b, err := proto.Marshal(rec.got[0])
	require.NoError(t, err)
	assert.NotContains(t, string(b), canary)
	assert.Equal(t, canary, rec.requests[0].Header.Get("Authorization"))
}

func TestCloseIsBoundedByItsContext(t *testing.T) {
	hang := make(chan struct{})
	rec := newReceiver(t, func(_ int, _ http.ResponseWriter) { <-hang })
	t.Cleanup(func() { close(hang) })
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
	oneRequest(tr)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.Error(t, tr.Close(ctx))
	assert.Equal(t, uint64(1), tr.Dropped())
}

func TestCloseDuringAPauseTriesOnceMore(t *testing.T) {
	rec := newReceiver(t, func(n int, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
		oneRequest(tr)
		time.Sleep(6 * time.Second)
		before := time.Now()
		closed(t, tr)
		assert.Equal(t, before, time.Now())
		assert.Equal(t, 2, rec.count())
		assert.Zero(t, tr.Dropped())
		oneRequest(tr)
		closed(t, tr)
		assert.Equal(t, uint64(1), tr.Dropped(), "after Close, spans are dropped")
	})
}

func TestCloseTriesOnce(t *testing.T) {
	rec := newReceiver(t, func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) })
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
	oneRequest(tr)
	assert.EqualError(t, tr.Close(t.Context()), "trace: spans did not reach the collector at "+rec.URL+": it answered 503")
	assert.EqualError(t, tr.Close(t.Context()), "trace: spans did not reach the collector at "+rec.URL+": it answered 503")
	assert.Equal(t, 1, rec.count())
	assert.Equal(t, uint64(1), tr.Dropped())
}

// The system's roots are read once, from a file that a variable names.
func TestOverTLS(t *testing.T) {
	const address = "TRACE_TEST_ENDPOINT"
	if to := os.Getenv(address); to != "" { // the process started below
		tr := start(t, trace.Config{Endpoint: to, Sample: 1, Headers: secrets("authorization", canary)}, nil)
		oneRequest(tr)
		closed(t, tr)
		return
	}
	rec := newUnstarted(nil)
	rec.EnableHTTP2 = true
	rec.StartTLS()
	t.Cleanup(rec.Close)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	require.NoError(t, os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rec.Certificate().Raw}), 0o600))
	cmd := exec.Command(os.Args[0], "-test.run=^TestOverTLS$")
	cmd.Env = append(os.Environ(), address+"="+rec.URL, "SSL_CERT_FILE="+roots)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Len(t, rec.spans(), 1)
	assert.Equal(t, "HTTP/2.0", rec.requests[0].Proto)
	assert.Equal(t, canary, rec.requests[0].Header.Get("Authorization"))
}

func TestASpanMayEndAfterItsParentAndFromAnyGoroutine(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
	span := tr.Start(nil, time.Now(), "POST", "/v1/messages")
	done := make(chan struct{})
	for range 8 {
		go func() {
			span.Attempt(time.Now()).End(trace.AttemptResult{})
			done <- struct{}{}
		}()
	}
	span.End(trace.Result{})
	for range 8 {
		<-done
	}
	closed(t, tr)
	assert.Len(t, rec.spans(), 9)
}
