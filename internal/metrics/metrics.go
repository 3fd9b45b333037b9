// Package metrics is every metric of the relay, and their handler. It counts what
// it is told, and reads the state of pools when it is asked for a scrape. It is not
// for logs or traces, and it decides nothing.
//
// Labels are closed sets: configured names, model classes of the table, and words
// of the relay's own. A model, a session, a path or a user is never a label.
package metrics

import (
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options are what the metrics are read from. Every func is called at each scrape,
// perhaps by more than one at once, and must not wait for a request.
type Options struct {
	// Version and Commit are of this build; "" is shown as "none".
	Version, Commit string
	// Pools is the state of all pools now; nil: no metrics of pools.
	Pools func() []Pool
	// LogDropped is how many log records were dropped since the start; nil: no
	// such metric.
	LogDropped func() uint64
	// SpansDropped is how many spans were lost on the way to the collector since the
	// start; nil: no such metric.
	SpansDropped func() uint64
	// Expiries is when the certificate in use of each listener that has one expires, by
	// the listener's name; nil: no such metric.
	Expiries func() map[string]time.Time
	// InFlight is how many requests are being served now; nil: no such metric.
	InFlight func() int64
}

// Metrics is every metric of one relay. All methods may be called concurrently.
// A nil *Metrics counts nothing.
type Metrics struct {
	registry *prometheus.Registry

	requests *series[requestKey, *requestSeries]
	attempts *series[attemptKey, prometheus.Counter]
	tokens   *series[tokenKey, *tokenSeries]
	alerts   *series[alertKey, prometheus.Counter]
	sheds    *series[string, prometheus.Counter]

	overhead prometheus.Histogram
	eventLag prometheus.Histogram
	stripped prometheus.Counter

	reloads  map[bool]prometheus.Counter
	reloadOK prometheus.Gauge
	reloaded prometheus.Gauge
	handler  http.Handler
}

// The upper bounds of buckets, in seconds.
var (
	durationBuckets = []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640}
	tokenBuckets    = []float64{.05, .1, .25, .5, .75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 30, 60, 120}
	overheadBuckets = []float64{50e-6, 100e-6, 200e-6, 350e-6, 500e-6, 750e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1}
	lagBuckets      = []float64{10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 100e-3, 500e-3, 1}
	waitBuckets     = []float64{.01, .05, .1, .25, .5, 1, 2, 3, 5, 10, 20, 40, 60}
)

// New returns metrics in a registry of their own. The configuration that the relay
// starts with counts as loaded now.
func New(o Options) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	r := m.registry
	m.requests = newRequests(r)
	m.attempts = newAttempts(r)
	m.tokens = newTokens(r)
	m.alerts = newAlerts(r)
	m.sheds = newSheds(r)

	m.overhead = histogram(r, "cc_relay_overhead_seconds", "Time the relay itself added to a request: its duration less waiting for clients, keys and providers.", overheadBuckets)
	m.eventLag = histogram(r, "cc_relay_event_lag_seconds", "Time between reading an event of a stream and having written it to the client.", lagBuckets)
	m.stripped = counter(r, "cc_relay_thinking_blocks_stripped_total", "Thinking blocks left out of requests because another vendor's model made them.")

	reloads := counterVec(r, "cc_relay_config_reloads_total", "Reloads of the configuration. A failed one changed nothing.", "result")
	m.reloads = map[bool]prometheus.Counter{true: reloads.WithLabelValues("ok"), false: reloads.WithLabelValues("failed")}
	m.reloadOK = gauge(r, "cc_relay_config_last_reload_successful", "Whether the last reload, or the start, took the configuration: 1, or 0.")
	m.reloaded = gauge(r, "cc_relay_config_last_reload_success_timestamp_seconds", "When the configuration in force was loaded, in Unix time.")
	m.reloadOK.Set(1)
	m.reloaded.Set(unix(time.Now()))

	m.readAtScrape(o)
	m.handler = promhttp.HandlerFor(r, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: maxScrapes})
	return m
}

// maxScrapes bounds the scrapes at one time: each reads every pool.
const maxScrapes = 4

// readAtScrape registers what is not counted here.
func (m *Metrics) readAtScrape(o Options) {
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "cc_relay_build_info", Help: "The build that runs; always 1."},
		[]string{"version", "commit", "goversion"})
	build.WithLabelValues(name(o.Version), name(o.Commit), runtime.Version()).Set(1)
	m.registry.MustRegister(build)
	if o.InFlight != nil {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "cc_relay_requests_in_flight",
			Help: "Requests being served now."}, func() float64 { return float64(o.InFlight()) }))
	}
	if o.LogDropped != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "cc_relay_log_records_dropped_total",
			Help: "Log records dropped because the log was too slow."}, func() float64 { return float64(o.LogDropped()) }))
	}
	if o.SpansDropped != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "cc_relay_trace_spans_dropped_total",
			Help: "Spans that did not reach the collector of traces."}, func() float64 { return float64(o.SpansDropped()) }))
	}
	if o.Expiries != nil {
		m.registry.MustRegister(expiryCollector(o.Expiries))
	}
	if o.Pools != nil {
		m.registry.MustRegister(poolCollector(o.Pools))
	}
}

// Handler answers scrapes, in the text format or as OpenMetrics, whichever is asked
// for. It asks for no credential: whoever serves it decides who may scrape. Nil Metrics
// has none: nil.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return nil
	}
	return m.handler
}

// EventLag counts one event of a stream: the time from reading it to having
// written it.
func (m *Metrics) EventLag(d time.Duration) {
	if m == nil {
		return
	}
	m.eventLag.Observe(d.Seconds())
}

// Reload counts an attempt to load the configuration anew.
func (m *Metrics) Reload(ok bool) {
	if m == nil {
		return
	}
	m.reloads[ok].Inc()
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloaded.Set(unix(time.Now()))
}

// Alert counts something that an operator should know of, once for each change: a
// key that is spent, a breaker that opens. kind is a word of the relay's own, such
// as breaker_open; provider is a configured name.
func (m *Metrics) Alert(kind, provider string) {
	if m == nil {
		return
	}
	m.alerts.of(alertKey{kind, provider}).Inc()
}

// Shed counts a request that was refused to protect the relay. reason is a word of
// the relay's own.
func (m *Metrics) Shed(reason string) {
	if m == nil {
		return
	}
	m.sheds.of(reason).Inc()
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func counter(r *prometheus.Registry, name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	r.MustRegister(c)
	return c
}

func counterVec(r *prometheus.Registry, name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.MustRegister(c)
	return c
}

func gauge(r *prometheus.Registry, name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	r.MustRegister(g)
	return g
}

func histogram(r *prometheus.Registry, name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	r.MustRegister(h)
	return h
}

func histogramVec(r *prometheus.Registry, name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	r.MustRegister(h)
	return h
}
