// Command bench measures what the relay costs: CPU per request, added latency
// and event lag, as ratios to a plain httputil.ReverseProxy with a tuned
// Transport that reads nothing. Both run as processes of their own in front of
// the same cheap upstream and take turns, so that a drifting machine drifts for
// both; medians of rounds are printed, the ratio's own from round to round. It asserts nothing: these are figures to
// read, and to compare with the same command on another commit.
//
//	go run ./bench            # a few minutes
//	go run ./bench -rounds 3 -time 1s
package main

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 5, "rounds of each measurement; medians are printed")
	length := flag.Duration("time", 2*time.Second, "length of one measurement")
	only := flag.String("only", "", "measure only the scenarios whose name contains this")
	relay := flag.String("relay", "", "a built cc-relay to measure; empty: build the one of this tree")
	role := flag.String("role", "", "internal: upstream or plain, the processes this command starts")
	target := flag.String("target", "", "internal: where plain sends")
	flag.Parse()
	var err error
	switch *role {
	case "upstream":
		err = serveUpstream()
	case "plain":
		err = servePlain(*target)
	default:
		err = compare(*rounds, *length, *only, *relay)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// target is one way to the upstream; direct has no process of its own.
type target struct {
	name string
	url  string
	proc *process
}

// scenario is one kind of traffic.
type scenario struct {
	name        string
	body        []byte
	connections int // for CPU; latency is taken on one
	events      int // per request; 0 = a JSON answer
}

func compare(rounds int, length time.Duration, only, relay string) error {
	targets, stop, err := startAll(relay)
	if err != nil {
		return err
	}
	defer stop()
	// 20 events, 10 ms apart: ten streams are a load that both cores can serve.
	scenarios := []scenario{
		{name: "small JSON", body: body(1<<10, false), connections: 8},
		{name: "200 KB body", body: body(200<<10, false), connections: 8},
		{name: "paced stream, per event", body: body(1<<10, true), connections: 10, events: 20},
	}
	scenarios = slices.DeleteFunc(scenarios, func(s scenario) bool { return !strings.Contains(s.name, only) })
	fmt.Printf("%d rounds of %v, medians; CPU is user + system of the proxy's process\n\n", rounds, length)
	fmt.Printf("%-26s %9s %9s %7s\n", "CPU µs", "plain", "relay", "ratio")
	for _, s := range scenarios {
		cpu := map[string][]float64{}
		for round := range rounds {
			for _, t := range inTurn(targets[1:], round) {
				v, err := cpuPerUnit(t, s, length)
				if err != nil {
					return fmt.Errorf("%s through %s: %w", s.name, t.name, err)
				}
				cpu[t.name] = append(cpu[t.name], v)
			}
		}
		fmt.Printf("%-26s %9.1f %9.1f %7.2f\n", s.name, median(cpu["plain"]), median(cpu["relay"]), median(ratios(cpu["relay"], cpu["plain"])))
	}
	fmt.Printf("\n%-26s %9s %9s %9s %9s\n", "added latency ms", "plain p50", "relay p50", "plain p99", "relay p99")
	for _, s := range scenarios {
		if s.events > 0 {
			continue
		}
		if err := printLatency(targets, s, rounds, length); err != nil {
			return err
		}
	}
	for _, s := range scenarios {
		if s.events == 0 {
			continue
		}
		if err := printLag(targets, s, rounds, length); err != nil {
			return err
		}
	}
	return nil
}

// ratios divides round by round: what a drifting machine does to a round it does to both.
func ratios(of, to []float64) []float64 {
	all := make([]float64, len(of))
	for i := range of {
		all[i] = of[i] / to[i]
	}
	return all
}

// inTurn rotates the targets, so that none always comes first.
func inTurn(ts []target, round int) []target {
	at := round % len(ts)
	return append(slices.Clone(ts[at:]), ts[:at]...)
}

// cpuPerUnit is the CPU time in µs that t's process takes for one request, or
// for one event of a stream, under load.
func cpuPerUnit(t target, s scenario, length time.Duration) (float64, error) {
	client := newClient(s.connections)
	defer client.CloseIdleConnections()
	if _, err := load(client, t, s, length/4); err != nil { // warm up
		return 0, err
	}
	before, err := t.proc.cpu()
	if err != nil {
		return 0, err
	}
	done, err := load(client, t, s, length)
	if err != nil {
		return 0, err
	}
	after, err := t.proc.cpu()
	if err != nil {
		return 0, err
	}
	units := done * int64(max(1, s.events))
	return float64((after - before).Microseconds()) / float64(units), nil
}

// load sends requests on each connection, one after the other, and returns how
// many were served. Streams begin spread over one pace: events that come together
// are served in one wake-up of a process, and how the bursts of streams begun at
// once fall apart would be what is measured.
func load(client *http.Client, t target, s scenario, length time.Duration) (int64, error) {
	end := time.Now().Add(length)
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for i := range s.connections {
		wg.Go(func() {
			if s.events > 0 {
				time.Sleep(pace * time.Duration(i) / time.Duration(s.connections))
			}
			for time.Now().Before(end) && failed.Load() == nil {
				if err := send(client, t, s, nil); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return done.Load(), nil
}

func printLatency(targets []target, s scenario, rounds int, length time.Duration) error {
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		taken := map[string][]float64{}
		for _, t := range inTurn(targets, round) {
			ms, err := latencies(t, s, length)
			if err != nil {
				return err
			}
			taken[t.name] = ms
		}
		for _, name := range []string{"plain", "relay"} {
			p50[name] = append(p50[name], quantile(taken[name], 0.5)-quantile(taken["direct"], 0.5))
			p99[name] = append(p99[name], quantile(taken[name], 0.99)-quantile(taken["direct"], 0.99))
		}
	}
	fmt.Printf("%-26s %9.3f %9.3f %9.3f %9.3f\n", s.name, median(p50["plain"]), median(p50["relay"]), median(p99["plain"]), median(p99["relay"]))
	return nil
}

// latencies takes one request after the other on one connection, in ms.
func latencies(t target, s scenario, length time.Duration) ([]float64, error) {
	client := newClient(1)
	defer client.CloseIdleConnections()
	var ms []float64
	for end := time.Now().Add(length); time.Now().Before(end); {
		from := time.Now()
		if err := send(client, t, s, nil); err != nil {
			return nil, err
		}
		ms = append(ms, time.Since(from).Seconds()*1000)
	}
	return ms[len(ms)/10:], nil // without the connect and the warm-up
}

// printLag prints how long events take from the upstream's write to the client's
// read, on one stream at a time.
func printLag(targets []target, s scenario, rounds int, length time.Duration) error {
	fmt.Printf("\n%-26s %9s %9s\n", "event lag ms, over direct", "p50", "p99")
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		taken := map[string][]float64{}
		for _, t := range inTurn(targets, round) {
			client := newClient(1)
			var lags []float64
			for end := time.Now().Add(length); time.Now().Before(end); {
				if err := send(client, t, s, &lags); err != nil {
					return err
				}
			}
			client.CloseIdleConnections()
			taken[t.name] = lags
		}
		for _, name := range []string{"plain", "relay"} {
			p50[name] = append(p50[name], quantile(taken[name], 0.5)-quantile(taken["direct"], 0.5))
			p99[name] = append(p99[name], quantile(taken[name], 0.99)-quantile(taken["direct"], 0.99))
		}
	}
	for _, name := range []string{"plain", "relay"} {
		fmt.Printf("%-26s %9.3f %9.3f\n", name, median(p50[name]), median(p99[name]))
	}
	return nil
}

func median(v []float64) float64 { return quantile(v, 0.5) }

func quantile(v []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(v))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// body is a request of about size bytes in the shape of a coding agent's.
func body(size int, stream bool) []byte {
	var b bytes.Buffer
	b.WriteString(`{"model":"claude-opus-5-5","max_tokens":128000,"metadata":{"user_id":"user_1_account__session_2"},"messages":[{"role":"user","content":[`)
	const line = `\tif err != nil {\n\t\treturn fmt.Errorf(\"read %s: %w\", path, err)\n\t}\n`
	for i := 0; b.Len() < size; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`{"type":"text","text":"`)
		for n := 0; n < 2000 && b.Len() < size; n += len(line) {
			b.WriteString(line)
		}
		b.WriteString(`"}`)
	}
	fmt.Fprintf(&b, `]}],"stream":%v}`, stream)
	return b.Bytes()
}
