package main

import (
	"time"

	"cc-relay/internal/simulator"
)

// scenario is one line of the table. To add one, add a line.
type scenario struct {
	id       string
	name     string
	settings settings
	streamed play // nil: there is no such thing
	whole    play // not streamed
}

// A stream of the simulator begins with message_start, ping and the beginning of
// its one block; the deltas follow.
const (
	beforeContent = 2
	afterDeltas   = 3
	midBody       = 300 // bytes of about 1,300
)

var (
	usual   = settings{}
	hasty   = settings{timeouts: "first_token_timeout: 3s, response_timeout: 3s"}
	reset   = fault{Kind: simulator.FaultReset, RST: true}
	lost    = fault{Kind: simulator.FaultReset}
	silent  = fault{Kind: simulator.FaultDelay, Delay: time.Hour}
	slow    = fault{Kind: simulator.FaultDelay, Delay: 20 * time.Second}
	ponders = fault{Kind: simulator.FaultStall, AfterEvents: beforeContent, Duration: 20 * time.Second}
	cut     = fault{Kind: simulator.FaultCut, AfterEvents: afterDeltas + 40, AfterBytes: midBody}
	cutIn   = fault{Kind: simulator.FaultCut, AfterEvents: afterDeltas + 40, MidFrame: true}
	cutHead = fault{Kind: simulator.FaultCut, AfterEvents: beforeContent, AfterBytes: midBody}
	stall   = fault{Kind: simulator.FaultStall, AfterEvents: afterDeltas + 40, AfterBytes: midBody, Duration: 30 * time.Second}
	mute    = fault{Kind: simulator.FaultStall, AfterEvents: beforeContent, Duration: 30 * time.Second}
	mutest  = fault{Kind: simulator.FaultStall, Duration: 30 * time.Second}
	garbled = fault{Kind: simulator.FaultMalformed, AfterEvents: beforeContent}
	garbles = fault{Kind: simulator.FaultMalformed, AfterEvents: afterDeltas + 20}
	endless = fault{Kind: simulator.FaultNoStop}
	ends    = fault{Kind: simulator.FaultNoStop, AfterEvents: beforeContent}
	empty   = fault{Kind: simulator.FaultEmpty}
	failing = fault{Kind: simulator.FaultErrorEvent}
	fails   = fault{Kind: simulator.FaultErrorEvent, AfterEvents: beforeContent}
	// The key of the first request dies for good.
	dead = fault{Kind: simulator.FaultDeadKey}
)

// empties is a 200 without a body that says it is of a kind.
func empties(kind string) fault {
	return fault{Kind: simulator.FaultEmpty, Headers: map[string]string{"Content-Type": kind}}
}

const (
	tooLong  = `{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210012 tokens > 200000 maximum"},"request_id":"req_011CFaultBench0000000001"}`
	filtered = `{"type": "error", "error": {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"}}`
)

// afterCut is how soon a client is told that a stream has broken off.
const afterCut = 2 * time.Second

// both is a scenario that is the same streamed and not streamed, split one that is
// not, and streamOnly one that only a stream can have.
func both(id, name string, s settings, p play) scenario { return scenario{id, name, s, p, p} }
func split(id, name string, s settings, streamed, whole play) scenario {
	return scenario{id, name, s, streamed, whole}
}
func streamOnly(id, name string, s settings, p play) scenario { return scenario{id, name, s, p, nil} }

var scenarios = []scenario{
	both("S01", "429 with retry-after, once", usual, limitedOnce),
	both("S02", "429 without retry-after, persistent", usual, limitedAlways),
	both("S03", "500, once", usual, with(once(status(500)), moved)),
	both("S04", "503, persistent", usual, with(status(503), spared)),
	both("S05", "connection reset before headers", usual, with(once(reset), moved)),
	both("S06", "no answer at all, limit 2 s", settings{timeouts: "first_token_timeout: 2s, response_timeout: 2s"},
		with(once(silent), movesIn(2*time.Second, 5*time.Second))),
	both("S07", "first byte after 20 s", usual, with(once(slow), waits(slow.Delay))),
	streamOnly("S07b", "first content after 20 s, message_start at once", usual, with(once(ponders), waits(ponders.Duration))),
	split("S08", "cut after 40 of 60 deltas; cut body", usual, with(once(cut), breaks(afterCut)), with(once(cut), moved)),
	streamOnly("S08b", "cut inside the 41st delta", usual, with(once(cutIn), breaks(afterCut))),
	split("S09", "stall of 30 s after 40 deltas, limit 5 s; stalled body", settings{timeouts: "idle_timeout: 5s, response_timeout: 5s"},
		with(once(stall), breaks(5*time.Second+afterCut)), with(once(stall), movesIn(5*time.Second, 8*time.Second))),
	streamOnly("S09b", "stall after message_start, limit 3 s", hasty, with(once(mute), movesIn(3*time.Second, 6*time.Second))),
	both("S10", "malformed frame before content; invalid JSON", usual, with(once(garbled), moved)),
	streamOnly("S10b", "malformed frame after 20 deltas", usual, with(once(garbles), untouched)),
	split("S11", "stream without message_stop; empty 200", usual, with(once(endless), breaks(afterCut)), with(once(empty), moved)),
	split("S11b", "stream that ends before content; half a body that ends cleanly", usual, with(once(ends), moved), with(once(endless), moved)),
	both("S12", "400, prompt too long", usual, passes(400, tooLong)),
	both("S13", "refusal of the model", usual, refusal),
	both("S13b", "400, content policy", usual, passes(400, filtered)),
	both("S14", "cut before content, the fallback refuses prefill; cut body", usual, with(once(cutHead), refusesPrefill)),
	both("S15", "primary down for 60 s, then back", usual, down(backIn)),
	both("S15b", "the same, with an active check each 2 s", settings{timeouts: "health_check: " + healthCheck.String()}, down(checked)),
	both("S16", "cut before content, whose model and usage; cut body", usual, with(once(cutHead), names(model))),
	both("S16b", "the same, with another model at the fallback", settings{models: `{ match: ["claude-sonnet-*"], targets: ["primary", "fallback/claude-sonnet-5"], strategy: failover }`},
		with(once(cutHead), names("claude-sonnet-5"))),

	both("O01", "529, once", usual, with(once(status(529)), moved)),
	both("O02", "529, persistent", usual, with(status(529), spared)),
	both("O03", "200 whose first frame, or body, is an error", usual, with(once(failing), moved)),
	streamOnly("O03b", "error event between message_start and content", usual, with(once(fails), moved)),
	split("O04", "200 with an empty stream; with empty JSON", usual, with(once(empties("text/event-stream")), moved), with(once(empties("application/json")), moved)),
	both("O05", "headers, then silence, limit 3 s", hasty, with(once(mutest), movesIn(3*time.Second, 6*time.Second))),
	streamOnly("O05b", "pings without content, limit 3 s", hasty, pingsOnly(3*time.Second, 6*time.Second)),
	both("O06", "401 on one of three keys, one provider", settings{keys: 3, alone: true}, with(once(dead), deadKey)),
	both("O07", "connection lost after sending, retry_unknown: true", settings{routing: "retry_unknown: true"}, with(once(lost), moved)),
	both("O07b", "connection lost after sending, retry_unknown: false", settings{routing: "retry_unknown: false"}, with(once(lost), stays)),
	both("O08", "every provider refuses connections", usual, refused),
	both("O08b", "every provider answers 529", usual, overloaded),
}
