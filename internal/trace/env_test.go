package trace_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"cc-relay/internal/trace"
)

// poison is every variable that OpenTelemetry's SDK, exporter and instrumentations
// read, and those of net/http's proxies. thief is an address.
// Sources: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
// and https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
func poison(thief string) map[string]string {
	env := map[string]string{
		"OTEL_SDK_DISABLED": "true", "OTEL_SERVICE_NAME": canary, "OTEL_RESOURCE_ATTRIBUTES": "service.name=" + canary + ",canary=" + canary + ",%zz,broken",
		"OTEL_ENTITIES": canary, "OTEL_PROPAGATORS": "baggage,b3," + canary, "OTEL_LOG_LEVEL": "debug", "OTEL_CONFIG_FILE": "/" + canary,
		"OTEL_EXPERIMENTAL_CONFIG_FILE": "/" + canary, "OTEL_TRACES_EXPORTER": "none", "OTEL_TRACES_SAMPLER": "always_off", "OTEL_TRACES_SAMPLER_ARG": canary,
		"OTEL_BSP_SCHEDULE_DELAY": "86400000", "OTEL_BSP_EXPORT_TIMEOUT": "1", "OTEL_BSP_MAX_QUEUE_SIZE": "1", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1",
		"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1", "OTEL_ATTRIBUTE_COUNT_LIMIT": "1", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1",
		"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1", "OTEL_SPAN_EVENT_COUNT_LIMIT": "1", "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "1",
		"OTEL_SPAN_LINK_COUNT_LIMIT": "1", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "1", "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
		"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true", "OTEL_GO_X_OBSERVABILITY": "true", "OTEL_GO_X_RESOURCE": "true",
		"HTTP_PROXY": thief, "HTTPS_PROXY": thief, "ALL_PROXY": thief, "NO_PROXY": "", "http_proxy": thief, "https_proxy": thief, "all_proxy": thief, "no_proxy": "",
	}
	for _, signal := range []string{"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"} {
		for name, value := range map[string]string{
			"ENDPOINT": thief, "HEADERS": "authorization=" + canary + ",x-team=" + canary, "INSECURE": "true", "CERTIFICATE": "/" + canary,
			"CLIENT_CERTIFICATE": "/" + canary, "CLIENT_KEY": "/" + canary, "COMPRESSION": "gzip", "TIMEOUT": "1", "PROTOCOL": "grpc",
		} {
			env[signal+name] = value
		}
	}
	return env
}

func TestTheEnvironmentChangesNothing(t *testing.T) {
	run := func() (request, body string) {
		rec := newReceiver(t, nil)
		var f told
		tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1, Headers: secrets("x-team", "blue")}, f.fail)
		twoAttempts(tr, header("00-"+traceID+"-"+parentID+"-01"), time.Unix(1700000000, 0))
		oneRequest(tr)
		closed(t, tr)
		assert.Empty(t, f.all())
		require.Len(t, rec.spans(), 4)
		assert.NotContains(t, rec.got[0].String(), canary)

		for _, s := range rec.spans() { // what differs from run to run
			s.SpanId, s.ParentSpanId = nil, nil
		}
		last := rec.spans()[3]
		last.TraceId, last.StartTimeUnixNano, last.EndTimeUnixNano = nil, 0, 0
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(rec.got[0])
		require.NoError(t, err)
		req := rec.requests[0]
		var h strings.Builder
		require.NoError(t, req.Header.WriteSubset(&h, map[string]bool{"Content-Length": true}))
		return req.Method + " " + req.URL.String() + "\n" + h.String(), string(b)
	}
	request, body := run()

	thief := newReceiver(t, nil)
	for name, value := range poison(thief.URL) {
		t.Setenv(name, value)
	}
	poisoned, poisonedBody := run()
	assert.Equal(t, request, poisoned)
	assert.Equal(t, body, poisonedBody)
	assert.Zero(t, thief.seen.Load(), "spans went where the environment says")

	off, err := trace.New(trace.Config{}, version, nil)
	require.NoError(t, err)
	assert.Nil(t, off, "tracing is on because the environment says so")
}

// A proxy of the environment is never used for loopback addresses. For a name that
// nobody has it would be asked.
func TestNoCollectorNoProxy(t *testing.T) {
	tr := start(t, trace.Config{Endpoint: "http://collector.invalid", Sample: 1}, nil)
	oneRequest(tr)
	assert.Error(t, tr.Close(t.Context()), "somebody answered")
}

// Some of it is read when a process starts, or once.
func TestAnEnvironmentPoisonedFromTheStartChangesNothing(t *testing.T) {
	thief := newReceiver(t, nil)
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^(TestTheWholeTraceOfARequest|TestNoCollectorNoProxy)$")
	cmd.Env = os.Environ()
	for name, value := range poison(thief.URL) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, 2, strings.Count(string(out), "--- PASS"), "%s", out)
	assert.NotContains(t, string(out), canary, "something told what the environment holds")
	assert.Zero(t, thief.seen.Load(), "something asked the address of the environment")
}

// What is not linked reads no environment, sets no global and starts no gRPC.
func TestNeitherSDKNorExporterIsLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "cc-relay/internal/trace").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	assert.Contains(t, deps, "go.opentelemetry.io/otel/trace")
	for _, dep := range deps {
		for _, bad := range []string{
			"go.opentelemetry.io/otel/sdk", "go.opentelemetry.io/otel/exporters", "go.opentelemetry.io/otel/internal/global",
			"go.opentelemetry.io/otel/propagation", "go.opentelemetry.io/otel/baggage", "google.golang.org/grpc",
		} {
			assert.False(t, dep == bad || strings.HasPrefix(dep, bad+"/"), dep)
		}
		assert.NotEqual(t, "go.opentelemetry.io/otel", dep, "it holds the globals")
	}
}
