package trace

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	otlp "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"cc-relay/internal/secret"
)

const (
	serviceName   = "cc-relay"
	flushEvery    = 5 * time.Second
	exportTimeout = 10 * time.Second // of one try
	maxTries      = 5                // of one batch, with about 1, 2, 4 and 8 s between
	maxWait       = 30 * time.Second // whatever Retry-After says
	reportEvery   = time.Minute
	maxReply      = 64 << 10
)

// exporter sends batches to the collector. One goroutine uses it.
type exporter struct {
	t        *Tracer
	url      string
	origin   string // of url, for errors
	headers  map[string]secret.Value
	version  string
	failed   func(error)
	client   *http.Client
	ctx      context.Context // of every export; ended by cancel
	cancel   context.CancelFunc
	reported time.Time
	lost     error // the first since Close; read after Tracer.done
}

// newExporter wants a valid cfg.
func newExporter(cfg Config, version string, failed func(error), t *Tracer) *exporter {
	u, _ := endpoint(cfg.Endpoint)
	e := &exporter{
		t: t, url: u.String(), origin: u.Scheme + "://" + u.Host, headers: maps.Clone(cfg.Headers), version: cut(version), failed: failed,
		client: &http.Client{
			Transport:     newTransport(),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// endpoint reads the URL. Its errors do not repeat it: it may hold a credential.
func endpoint(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("tracing.endpoint: no URL of an OTLP/HTTP collector; write one such as https://collector:4318")
	case u.User != nil:
		return nil, errors.New("tracing.endpoint: holds a user or password; put credentials into tracing.headers")
	case u.Fragment != "":
		return nil, errors.New("tracing.endpoint: ends in a #fragment; leave it out")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u, nil
}

// checkHeader refuses what net/http would refuse at each export, what the exporter
// says itself, and a credential in clear on a network.
func checkHeader(name, value string, to *url.URL) error {
	switch {
	case name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "":
		// Not repeated: a whole line with its credential may stand there.
		return errors.New("tracing.headers: a name is empty or holds other characters than letters, digits, - _ and .; write it left of the colon, its value right")
	case slices.Contains([]string{"Host", "Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Connection"}, http.CanonicalHeaderKey(name)):
		return fmt.Errorf("tracing.headers: %s is set by the relay itself; leave it out", name)
	case value == "":
		return fmt.Errorf("tracing.headers: the value of %s is empty", name)
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return fmt.Errorf("tracing.headers: the value of %s holds a line break or another control character", name)
	case to.Scheme == "http" && !loopback(to.Hostname()):
		return fmt.Errorf("tracing.headers: %s would cross the network in clear; make tracing.endpoint https, or use a collector on this machine", name)
	}
	return nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// newTransport verifies certificates and uses no proxy of the environment.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    5 * time.Second,
		ResponseHeaderTimeout:  exportTimeout,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConns:           2,
		MaxResponseHeaderBytes: maxReply,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		// Else a connection that died silently would take every export with it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// run sends what is pending, every few seconds and when it is a batch, until
// Close, and then once more.
func (t *Tracer) run() {
	defer close(t.done)
	defer t.export.cancel()
	defer t.export.client.CloseIdleConnections()
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var spare []record
	for {
		select {
		case <-t.stop:
			t.flush(nil)
			return
		case <-tick.C:
		case <-t.full:
		}
		spare = t.flush(spare)
	}
}

// flush sends what is pending and leaves spare in its place. It returns the slice
// that was pending, emptied.
func (t *Tracer) flush(spare []record) []record {
	t.mu.Lock()
	ended := t.pending
	t.pending = spare
	t.mu.Unlock()
	if len(ended) == maxPending {
		t.export.report(errTooMany)
	}
	for batch := range slices.Chunk(ended, maxBatch) {
		t.export.send(batch)
	}
	clear(ended)
	return ended[:0]
}

// failure is what became of one try; the zero failure is a success.
type failure struct {
	err   error
	again bool          // it may be tried again
	wait  time.Duration // but not sooner, as the collector asks
	lost  int           // spans, where it is not tried again
}

// send tries until the collector has the batch or there is no use in trying: at
// most maxTries times, and once more when Close comes.
func (e *exporter) send(batch []record) {
	body, err := e.encode(batch)
	if err != nil {
		e.lose(failure{err: err, lost: len(batch)})
		return
	}
	for try := 1; ; try++ {
		last := e.closing() || try == maxTries
		f := e.post(body, len(batch))
		if f.err == nil {
			return
		}
		if last || !f.again {
			e.lose(f)
			return
		}
		e.report(f.err)
		e.pause(max(f.wait, backoff(try)))
	}
}

// lose gives up.
func (e *exporter) lose(f failure) {
	e.t.dropped.Add(uint64(f.lost))
	e.report(f.err)
	if e.closing() && e.lost == nil {
		e.lost = fmt.Errorf("trace: spans did not reach the collector at %s: %w", e.origin, f.err)
	}
}

func (e *exporter) closing() bool {
	select {
	case <-e.t.stop:
		return true
	default:
		return false
	}
}

// pause returns early when Close comes.
func (e *exporter) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-e.t.stop:
	}
}

// backoff doubles from a second, give or take a quarter.
func backoff(try int) time.Duration {
	d := time.Second << (try - 1)
	return d*3/4 + rand.N(d/2)
}

// report tells failed what is wrong, and how much it cost until now.
func (e *exporter) report(err error) {
	now := time.Now()
	if e.failed == nil || !e.reported.IsZero() && now.Sub(e.reported) < reportEvery {
		return
	}
	e.reported = now
	e.failed(fmt.Errorf("trace: spans do not reach the collector at %s: %w (%d lost since the start)", e.origin, err, e.t.Dropped()))
}

func (e *exporter) encode(batch []record) ([]byte, error) {
	spans := make([]*otlp.Span, len(batch))
	for i := range batch {
		spans[i] = batch[i].message()
	}
	about := &resource.Resource{}
	for _, kv := range [][2]string{{string(semconv.ServiceNameKey), serviceName}, {string(semconv.ServiceVersionKey), e.version}} {
		about.Attributes = append(about.Attributes, &common.KeyValue{
			Key: kv[0], Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: kv[1]}},
		})
	}
	return proto.Marshal(&collector.ExportTraceServiceRequest{ResourceSpans: []*otlp.ResourceSpans{{
		Resource:  about,
		SchemaUrl: semconv.SchemaURL,
		ScopeSpans: []*otlp.ScopeSpans{{
			Scope: &common.InstrumentationScope{Name: serviceName, Version: e.version},
			Spans: spans,
		}},
	}}})
}

// post tries once.
// Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response.
func (e *exporter) post(body []byte, spans int) failure {
	ctx, cancel := context.WithTimeout(e.ctx, exportTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return failure{err: errors.New("tracing.endpoint cannot be used"), lost: spans}
	}
	for name, value := range e.headers {
		req.Header.Set(name, value.Reveal())
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", serviceName+"/"+e.version)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return failure{err: harmless(err), again: e.ctx.Err() == nil, lost: spans}
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		reply = nil // the status has said what matters
	}
	return judge(resp, reply, spans)
}

// judge says what an answer means. Nothing the collector writes is repeated: some
// answer with what they were sent, credential included.
func judge(resp *http.Response, reply []byte, spans int) failure {
	f := failure{err: fmt.Errorf("it answered %d%s", resp.StatusCode, hint(resp.StatusCode)), lost: spans}
	switch resp.StatusCode {
	case http.StatusOK:
		var r collector.ExportTraceServiceResponse
		if proto.Unmarshal(reply, &r) != nil || r.GetPartialSuccess().GetRejectedSpans() <= 0 {
			return failure{}
		}
		f.lost = int(min(r.GetPartialSuccess().GetRejectedSpans(), int64(spans)))
		f.err = fmt.Errorf("it took a batch but for %d spans of %d; its own log says why", f.lost, spans)
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		f.again, f.wait = true, retryAfter(resp.Header.Get("Retry-After"))
	}
	return f
}

func hint(status int) string {
	switch {
	case status >= 300 && status < 400:
		return ", and redirects are not followed: make tracing.endpoint the address it points to"
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return ": check tracing.headers"
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		return ": check the path of tracing.endpoint, usually /v1/traces"
	case status == http.StatusUnsupportedMediaType:
		return ": tracing.endpoint must speak OTLP over HTTP with protobuf, usually port 4318"
	}
	return ""
}

// retryAfter is 0 where the header says nothing of use.
func retryAfter(s string) time.Duration {
	if n, err := strconv.Atoi(s); err == nil {
		return min(time.Duration(max(n, 0))*time.Second, maxWait)
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(time.Until(at), 0), maxWait)
	}
	return 0
}

// harmless is the part of an error of net/http that holds nothing of the request:
// the whole names the URL with its query, and may quote what came instead of HTTP.
func harmless(err error) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return errors.New("no answer in time")
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e
	}
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return errors.New("it speaks no TLS; make tracing.endpoint http, or turn TLS on there")
	case errors.Is(err, context.Canceled):
		return errors.New("the time to stop was over")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it closed the connection without an answer")
	}
	return errors.New("what it answers is no HTTP; check the port of tracing.endpoint, usually 4318")
}
