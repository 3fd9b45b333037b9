package metrics_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/metrics"
)

const deploy = "../../deploy/"

func readDeploy(t *testing.T, name string) []byte {
	b, err := os.ReadFile(deploy + name)
	require.NoError(t, err)
	return b
}

// promtool runs promtool. CI must have it; elsewhere `make rules` and CI find out.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("promtool is not installed, and CI must not do without: it is part of the Debian package prometheus")
	}
	if err != nil {
		t.Skip("NOT CHECKED, promtool is not installed: it is part of the Debian package prometheus")
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "promtool %s: %s", strings.Join(args, " "), out)
	if args[1] == "metrics" {
		require.Empty(t, string(out), "promtool has remarks")
	}
}

func TestScrapePassesPromtool(t *testing.T) {
	text, _ := scrape(t, everything().Handler())
	promtool(t, text, "check", "metrics")
}

func TestRulesPassPromtool(t *testing.T) {
	promtool(t, "", "check", "rules", deploy+"prometheus/rules.yml")
	promtool(t, "", "test", "rules", deploy+"prometheus/rules_test.yml")
}

type rule struct {
	Record, Alert, Expr string
	For                 string
	Labels, Annotations map[string]string
}

func rules(t *testing.T) []rule {
	var file struct{ Groups []struct{ Rules []rule } }
	require.NoError(t, yaml.Unmarshal(readDeploy(t, "prometheus/rules.yml"), &file))
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	require.NotEmpty(t, all)
	return all
}

// dashboard returns the expressions of the dashboard, and the queries of its variables.
func dashboard(t *testing.T) (exprs, queries []string) {
	var d any
	require.NoError(t, json.Unmarshal(readDeploy(t, "grafana/cc-relay.json"), &d))
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			if e, ok := v["expr"].(string); ok {
				exprs = append(exprs, e)
			}
			if q, ok := v["definition"].(string); ok {
				queries = append(queries, q)
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(d)
	require.NotEmpty(t, exprs)
	require.NotEmpty(t, queries)
	return exprs, queries
}

func TestDashboardCanBeImported(t *testing.T) {
	var d struct {
		ID         *int `json:"id"`
		UID        string
		Templating struct {
			List []struct{ Name, Type, Query any }
		}
		Panels []struct {
			ID         int
			Title      string
			Type       string
			Datasource *struct{ UID string }
			GridPos    struct{ X, Y, W, H int }
			Targets    []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(readDeploy(t, "grafana/cc-relay.json"), &d))
	assert.Nil(t, d.ID, "the importing Grafana numbers it")
	assert.Equal(t, "cc-relay", d.UID)
	assert.Equal(t, "datasource", d.Templating.List[0].Name)
	assert.Equal(t, "prometheus", d.Templating.List[0].Query)
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		assert.False(t, ids[p.ID], "two panels have id %d", p.ID)
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				require.Empty(t, taken[at], "%s lies over another panel", p.Title)
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		assert.NotEmpty(t, p.Targets, p.Title)
		require.NotNil(t, p.Datasource, p.Title)
		assert.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
	}
}

func TestDashboardPassesPromtool(t *testing.T) {
	exprs, _ := dashboard(t)
	type record struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var all []record
	for i, e := range exprs {
		all = append(all, record{fmt.Sprint("panel_", i), strings.ReplaceAll(e, "$__rate_interval", "5m")})
	}
	b, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": all}}})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	require.NoError(t, os.WriteFile(file, b, 0o600))
	promtool(t, "", "check", "rules", file)
}

var (
	selector = regexp.MustCompile(`\b(cc_relay[a-z0-9_:]*|go_[a-z_]+|process_[a-z_]+|up)\b(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)(=~|!=|!~|=)"`)
	grouping = regexp.MustCompile(`\b(?:by|on) \(([^)]*)\)`)
)

// A metric that was renamed would leave an empty panel, or an alert that never fires.
func TestDashboardAndRulesUseWhatIsShown(t *testing.T) {
	labels := map[string]map[string]bool{"up": {}} // of each metric that there is
	_, shown := scrape(t, everything().Handler())
	all := map[string]bool{"job": true, "instance": true}
	for series := range shown {
		metric, rest, _ := strings.Cut(series, "{")
		if labels[metric] == nil {
			labels[metric] = map[string]bool{}
		}
		for _, l := range matcher.FindAllStringSubmatch(rest, -1) {
			labels[metric][l[1]], all[l[1]] = true, true
		}
	}
	recorded := map[string]bool{}
	exprs, queries := dashboard(t)
	exprs = append(exprs, queries...)
	for _, r := range rules(t) {
		recorded[r.Record] = true
		exprs = append(exprs, r.Expr)
	}
	used := map[string]bool{}
	for _, e := range exprs {
		for _, s := range selector.FindAllStringSubmatch(e, -1) {
			metric := s[1]
			used[metric] = true
			if recorded[metric] {
				continue
			}
			require.Contains(t, labels, metric, e)
			for _, l := range matcher.FindAllStringSubmatch(s[2], -1) {
				assert.True(t, l[1] == "job" || l[1] == "instance" || labels[metric][l[1]], "%s has no label %s: %s", metric, l[1], e)
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(e, -1) {
			for l := range strings.SplitSeq(g[1], ",") {
				assert.True(t, all[strings.TrimSpace(l)], "there is no label %s: %s", l, e)
			}
		}
	}
	for metric := range labels {
		base := strings.TrimSuffix(strings.TrimSuffix(metric, "_sum"), "_count")
		if strings.HasPrefix(metric, "cc_relay") {
			assert.True(t, used[metric] || used[base+"_bucket"], "neither dashboard nor rules show %s", metric)
		}
	}
}

func TestEveryAlertIsTestedBothWays(t *testing.T) {
	var file struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	require.NoError(t, yaml.Unmarshal(readDeploy(t, "prometheus/rules_test.yml"), &file))
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, a := range test.AlertRuleTest {
			if len(a.ExpAlerts) > 0 {
				fires[a.Alertname] = true
			} else {
				silent[a.Alertname] = true
			}
		}
	}
	readme := string(readDeploy(t, "README.md"))
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		assert.True(t, fires[r.Alert], "no test sees %s fire", r.Alert)
		assert.True(t, silent[r.Alert], "no test sees %s silent", r.Alert)
		assert.Contains(t, []string{"warning", "critical"}, r.Labels["severity"], r.Alert)
		assert.NotEmpty(t, r.Annotations["summary"], r.Alert)
		assert.NotEmpty(t, r.Annotations["action"], r.Alert)
		assert.Contains(t, readme, r.Alert)
	}
}

func TestServiceRunsAsTheRelayNeeds(t *testing.T) {
	set := service(string(readDeploy(t, unit)))
	for k, want := range map[string]string{
		"StateDirectory": "cc-relay", "StateDirectoryMode": "0700", "Environment": "XDG_STATE_HOME=%S/cc-relay",
		"ExecReload": "/bin/kill -HUP $MAINPID", "KillSignal": "SIGTERM",
	} {
		assert.Equal(t, []string{want}, set[k], k)
	}
	require.Len(t, set["TimeoutStopSec"], 1)
	stop, err := time.ParseDuration(strings.TrimSuffix(set["TimeoutStopSec"][0], "in"))
	require.NoError(t, err)
	assert.Greater(t, stop, config.Default().Server.DrainTimeout+10*time.Second, "systemd kills a relay that drains")
}

// An alert on a metric that comes with the first trouble would miss that trouble.
func TestAFreshRelayShowsWhatAlertsNeed(t *testing.T) {
	_, got := scrape(t, metrics.New(metrics.Options{LogDropped: func() uint64 { return 0 }, InFlight: func() int64 { return 0 }}).Handler())
	for _, series := range []string{
		"cc_relay_config_last_reload_successful", "cc_relay_log_records_dropped_total", "cc_relay_requests_in_flight",
		"cc_relay_event_lag_seconds_count", "cc_relay_overhead_seconds_count",
		`cc_relay_config_reloads_total{result="ok"}`, `cc_relay_config_reloads_total{result="failed"}`,
	} {
		assert.Contains(t, got, series)
	}
}
