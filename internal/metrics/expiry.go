package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// expiryCollector reads at each scrape when certificates expire: a listener takes a new
// one without a restart.
type expiryCollector func() map[string]time.Time

var expiryDesc = desc("cc_relay_certificate_expiry_timestamp_seconds", "When the certificate in use of a listener expires, in Unix time.", "listener")

// Describe implements prometheus.Collector.
func (c expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- expiryDesc }

// Collect implements prometheus.Collector.
func (c expiryCollector) Collect(ch chan<- prometheus.Metric) {
	for listener, at := range c() {
		ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, unix(at), listener)
	}
}
