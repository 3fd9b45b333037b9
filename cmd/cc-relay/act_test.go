package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/admin"
)

func TestActions(t *testing.T) {
	done := admin.ActionResult{Message: "done"}
	forced := admin.ActionResult{Message: "bedrock gets no requests of sonnet", Expires: noon.Add(10 * time.Minute)}
	f := newFakeAdmin(t, map[string]any{
		"POST /api/v1/keys/0a1b/off":           done,
		"POST /api/v1/keys/0a1b/on":            done,
		"POST /api/v1/keys/0a1b/release":       admin.ActionResult{Message: "done", Warning: "the audit is full"},
		"POST /api/v1/providers/my%20own/on":   done,
		"POST /api/v1/providers/bedrock/drain": done,
		"POST /api/v1/breakers/force":          forced,
		"POST /api/v1/keys/may/on":             refusal("forbidden", "this token may only look; use the one in admin.token"),
	})
	for name, tc := range map[string]struct {
		args           []string
		asked          string
		stdout, stderr string
	}{
		"key off":        {[]string{"key", "off", "0a1b"}, "POST /api/v1/keys/0a1b/off {}", "done\n", ""},
		"key on":         {[]string{"key", "on", "0a1b", "--provider", "b"}, `POST /api/v1/keys/0a1b/on {"provider":"b"}`, "done\n", ""},
		"key release":    {[]string{"key", "release", "0a1b"}, "POST /api/v1/keys/0a1b/release {}", "done\n", "warning: the audit is full\n"},
		"provider drain": {[]string{"provider", "drain", "bedrock"}, "POST /api/v1/providers/bedrock/drain", "done\n", ""},
		"breaker force":  {[]string{"breaker", "force", "bedrock", "open", "--class", "sonnet", "--for", "5m"}, `POST /api/v1/breakers/force {"provider":"bedrock","class":"sonnet","state":"open","for":"5m0s"}`, "bedrock gets no requests of sonnet; until 12:10:00\n", ""},
		"breaker auto":   {[]string{"breaker", "force", "bedrock", "auto"}, `POST /api/v1/breakers/force {"provider":"bedrock","state":"auto"}`, "bedrock gets no requests of sonnet; until 12:10:00\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := f.command(tc.args...)
			assert.Zero(t, code, stderr)
			assert.Equal(t, tc.asked, f.last())
			assert.Equal(t, tc.stdout, stdout)
			assert.Equal(t, tc.stderr, stderr)
		})
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"a viewer":      {[]string{"key", "on", "may"}, "the token of CC_RELAY_ADMIN_TOKEN may only look: this token may only look; use the one in admin.token"},
		"no such key":   {[]string{"key", "on", "../x"}, "there is no key"},
		"no such state": {[]string{"breaker", "force", "bedrock", "ajar"}, `"ajar" is none of open, closed, auto`},
		"no ID":         {[]string{"key", "off"}, "which key? give its ID"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := f.command(tc.args...)
			assert.Equal(t, 1, code)
			assert.Empty(t, stdout)
			assert.Contains(t, stderr, tc.want)
		})
	}
}

func TestReloadAndDiffOfARunningRelay(t *testing.T) {
	f := newFakeAdmin(t, map[string]any{
		"POST /api/v1/reload": admin.ActionResult{Message: "the configuration was read again", Reload: &admin.Reload{
			Changed: []string{"logging.level", "server.listen"}, NeedsRestart: []string{"server.listen"}}},
		"POST /api/v1/config/diff": admin.ConfigDiff{Changed: []string{}, NeedsRestart: []string{"admin.listen"}},
	})
	code, stdout, stderr := f.command("config", "reload")
	assert.Zero(t, code, stderr)
	assert.Equal(t, "the configuration was read again\nlogging.level\nserver.listen  (needs a restart)\n", stdout)
	_, stdout, _ = f.command("config", "diff")
	assert.Equal(t, "admin.listen  (needs a restart)\n", stdout)
	f.answers["POST /api/v1/config/diff"] = admin.ConfigDiff{}
	_, stdout, _ = f.command("config", "diff")
	assert.Equal(t, "no change\n", stdout)
	f.answers["POST /api/v1/config/diff"] = admin.ConfigDiff{Error: "config.yaml:3: unknown field\nconfig.yaml:5: negative"}
	f.answers["POST /api/v1/reload"] = refusal("action_failed", "it stays as it was: config.yaml:3: unknown field\nconfig.yaml:5: negative")
	_, _, stderr = f.command("config", "reload")
	assert.Equal(t, "cc-relay: it stays as it was: config.yaml:3: unknown field\nconfig.yaml:5: negative\n", stderr)
	code, stdout, stderr = f.command("config", "diff")
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Equal(t, "cc-relay: a reload would be refused: config.yaml:3: unknown field\nconfig.yaml:5: negative\n", stderr)
}

const someEvents = "retry: 2000\n\n: heartbeat\n\n" +
	"event: key\ndata: {\"at\":\"2026-11-26T12:00:00Z\",\"provider\":\"anthropic\",\"key\":\"0a1b2c3d4e5f\",\"class\":\"sonnet\",\"from\":\"available\",\"to\":\"cooling\",\"until\":\"2026-11-26T12:01:00Z\"}\n\n" +
	"event: breaker\ndata: {\"at\":\"2026-11-26T12:00:01Z\",\"provider\":\"bedrock\",\"class\":\"\",\"from\":\"closed\",\"to\":\"open\",\"forced\":true}\n\n" +
	"event: provider\ndata: {\"at\":\"2026-11-26T12:00:02Z\",\"provider\":\"new\",\"from\":\"\",\"to\":\"on\"}\n\n" +
	"event: lost\ndata: {\"count\":3}\n\n" +
	"event: request\ndata: {\"id\":\"01J\",\"at\":\"2026-11-26T12:00:03Z\",\"model\":\"m\",\"status\":200,\"duration_ms\":12}\n\n" +
	"event: alert\ndata: {\"at\":\"2026-11-26T12:00:04Z\",\"provider\":\"bedrock\",\"kind\":\"unauthorized\"}\n\n" +
	"event: reload\ndata: {\"at\":\"2026-11-26T12:00:05Z\"}\n\n" +
	"event: reload\ndata: {\"at\":\"2026-11-26T12:00:06Z\",\"error\":\"c.yaml:1:2: bad\\nc.yaml:3:4: \\u001b[1mworse\"}\n\n" +
	"event: newer\ndata: {\"text\":\"\\u001b[1mhm\"}\n\n"

func TestEvents(t *testing.T) {
	f := newFakeAdmin(t, map[string]any{"GET /api/v1/events": someEvents})
	code, stdout, stderr := f.command("events")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "the relay ended the stream of events")
	assert.Equal(t, "GET /api/v1/events?stats=off", f.last())
	assert.Equal(t, `12:00:00  key       anthropic/0a1b2c3d4e5f/sonnet: available -> cooling until 12:01:00
12:00:01  breaker   bedrock: closed -> open (forced)
12:00:02  provider  new: none -> on
          lost      3 events were missed here
12:00:03  request   01J  m  200  12ms  0 in, 0 out
12:00:04  alert     bedrock: unauthorized
12:00:05  reload    in force
12:00:06  reload    refused: c.yaml:1:2: bad c.yaml:3:4:  [1mworse
          newer     {"text":" [1mhm"}
`, stdout)
	_, stdout, _ = f.command("events", "--json")
	assert.Contains(t, stdout, `{"event":"lost","data":{"count":3}}`+"\n")
}
