package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"

	"cc-relay/internal/simulator"
)

// What the demo's sessions ask with.
const (
	demoModel = "claude-sonnet-5-5"
	demoToken = "demo" // any token will do: the relay has no clients configured
	demoTool  = "demo_read"
)

// Sizes of a turn in tokens: tool results and answers are log-normal with these
// medians. demoMeanAnswer is what an answer comes to on average, with its tool call.
const (
	demoToolResult    = 700
	demoMaxToolResult = 25_000
	demoAnswerTokens  = 190
	demoMaxAnswer     = 1_500
	demoMeanAnswer    = 290
)

// demoSession is one conversation of a coding agent: a prefix that all sessions
// share, then tool results and answers in turn, all of it sent with each request.
type demoSession struct {
	load    *demoLoad
	id      string
	turns   int
	done    int    // turns
	history []byte // messages of the turns so far, each with a comma
	block   string // the newest user block, without its braces
	grown   int    // bytes that the next prompt has more than the last
	prompt  int    // tokens of the last prompt, by the provider's count
}

func (l *demoLoad) newSession(number int) *demoSession {
	s := &demoSession{
		load:  l,
		id:    fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", rand.Uint32(), rand.N(1<<16), rand.N(1<<12), rand.N(1<<12), rand.N[int64](1<<48)),
		turns: 12 + rand.N(17),
	}
	s.ask(`"type":"text","text":%q`, s.id+": "+prose(logNormal(demoToolResult, 0.5, demoMaxToolResult)))
	if number <= len(demoOrganizations()) {
		s.grown += len(l.prefix) // this many sessions have to write it, at the best
	}
	return s
}

// ask makes the block that the next request ends with.
func (s *demoSession) ask(format string, args ...any) {
	s.block = fmt.Sprintf(format, args...)
	s.grown = len(s.block)
}

// need is what the next turn takes, as far as is known before.
func (s *demoSession) need() demand {
	return demand{requests: 1, input: float64(simulator.CountTokens(s.grown)), output: demoMeanAnswer}
}

// turn sends the next request and takes in its answer. A session ends with an
// error, since a client of the demo never sends anything twice.
func (s *demoSession) turn() {
	if s.done == 0 {
		a, err := s.send("/v1/messages/count_tokens", "")
		s.load.count(a, demand{}, err)
	}
	need := s.need()
	s.done++
	a, err := s.send("/v1/messages", fmt.Sprintf(`,"max_tokens":32000,"stream":%t`, s.done%5 != 0))
	if err == nil && len(a.Content) == 0 {
		err = errors.New("the answer has no content")
	}
	if err != nil {
		s.load.count(a, demand{}, err)
		s.turns = s.done
		return
	}
	used := demand{requests: 1, input: need.input, output: float64(a.Usage.Output)}
	if s.prompt > 0 {
		used.input = float64(a.Usage.prompt() - s.prompt)
	}
	s.load.pace.add(used.plus(need.times(-1)))
	s.load.count(a, used, nil)
	s.extend(a)
}

// extend appends a turn to the history, and what the tool of its answer said.
func (s *demoSession) extend(a demoAnswer) {
	content, err := json.Marshal(a.Content)
	if err != nil { // it came as JSON
		panic(err)
	}
	s.history = fmt.Appendf(s.history, `{"role":"user","content":[{%s}]},{"role":"assistant","content":%s},`, s.block, content)
	s.prompt = a.Usage.prompt()
	s.ask(`"type":"tool_result","tool_use_id":%q,"content":%q`, a.Content[len(a.Content)-1].ID, prose(logNormal(demoToolResult, 1.4, demoMaxToolResult)))
	s.grown += len(content)
}

// send posts the conversation with settings at its end, once: nothing shall hide
// an error from the figures. Any answer but a whole one with status 200 is an error.
func (s *demoSession) send(path, settings string) (demoAnswer, error) {
	body := s.load.prefix + string(s.history) +
		`{"role":"user","content":[{` + s.block + `,"cache_control":{"type":"ephemeral"}}]}]` + settings + `}`
	req, err := http.NewRequest(http.MethodPost, s.load.url+path, strings.NewReader(body))
	if err != nil {
		return demoAnswer{}, err
	}
	req.GetBody = nil // or the transport might send it again
	req.Header.Set("Authorization", "Bearer "+demoToken)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Claude-Code-Session-Id", s.id)
	resp, err := s.load.client.Do(req)
	if err != nil {
		return demoAnswer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var a demoAnswer
	a.attempts, _ = strconv.Atoi(resp.Header.Get("X-Cc-Relay-Attempts")) // absent: the relay itself refused
	return a, a.read(resp)
}

// demoAnswer is what a client makes of an answer, streamed or not.
type demoAnswer struct {
	attempts int // of the relay

	Content []demoBlock `json:"content"`
	Usage   usage       `json:"usage"`
}

type demoBlock struct {
	Type  string          `json:"type"`
	Text  string          `json:"text,omitempty"`
	ID    string          `json:"id,omitempty"`
	Name  string          `json:"name,omitempty"`
	Input json.RawMessage `json:"input,omitempty"`
}

// usage is in tokens; Input, Written and Read add up to the prompt.
type usage struct {
	Input   int `json:"input_tokens"`
	Written int `json:"cache_creation_input_tokens"`
	Read    int `json:"cache_read_input_tokens"`
	Output  int `json:"output_tokens"`
}

func (u usage) prompt() int { return u.Input + u.Written + u.Read }

func (u usage) plus(v usage) usage {
	return usage{u.Input + v.Input, u.Written + v.Written, u.Read + v.Read, u.Output + v.Output}
}

// hitShare is the part of the prompt that came from the cache, 0 of no prompt.
func (u usage) hitShare() float64 { return float64(u.Read) / float64(max(u.prompt(), 1)) }

func (a *demoAnswer) read(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // the status says enough
		return fmt.Errorf("status %d: %s", resp.StatusCode, strings.TrimSpace(string(text)))
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return a.readStream(resp.Body)
	}
	return json.NewDecoder(resp.Body).Decode(a)
}

// demoEvent has of all events what the demo looks at.
type demoEvent struct {
	Type         string     `json:"type"`
	Message      demoAnswer `json:"message"`
	ContentBlock demoBlock  `json:"content_block"`
	Usage        usage      `json:"usage"`
	Delta        struct {
		Text        string `json:"text"`
		PartialJSON string `json:"partial_json"`
	} `json:"delta"`
}

func (a *demoAnswer) readStream(r io.Reader) error {
	stopped := false
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e demoEvent
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event %q: %w", data, err)
		}
		if e.Type == "error" {
			return fmt.Errorf("error event: %s", data)
		}
		a.take(e)
		stopped = e.Type == "message_stop"
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if !stopped {
		return errors.New("the stream ended without message_stop")
	}
	return nil
}

func (a *demoAnswer) take(e demoEvent) {
	switch e.Type {
	case "message_start":
		a.Usage = e.Message.Usage
	case "content_block_start":
		e.ContentBlock.Input = nil // comes in deltas
		a.Content = append(a.Content, e.ContentBlock)
	case "content_block_delta":
		if len(a.Content) == 0 {
			return // seen as an answer without content
		}
		b := &a.Content[len(a.Content)-1]
		b.Text += e.Delta.Text
		b.Input = append(b.Input, e.Delta.PartialJSON...)
	case "message_delta":
		a.Usage.Output = e.Usage.Output
	}
}

// demoPrefix is the beginning of every body up to the first message, of about
// 20,000 tokens: tools and system prompt, laid out and marked for the cache as
// Claude Code does it.
func demoPrefix() string {
	var tools []string
	for i := range 12 {
		name := demoTool
		if i > 0 {
			name = fmt.Sprintf("%s_%d", demoTool, i)
		}
		tools = append(tools, fmt.Sprintf(`{"name":%q,"description":%q,"input_schema":{"type":"object","properties":{"path":{"type":"string"}}}}`, name, prose(1000)))
	}
	const cached = `,"cache_control":{"type":"ephemeral"}}`
	system := `{"type":"text","text":"cc-relay demo"},` +
		`{"type":"text","text":"You are the agent of a demo."` + cached + `,` +
		fmt.Sprintf(`{"type":"text","text":%q`, prose(7700)) + cached
	return fmt.Sprintf(`{"model":%q,"tools":[%s],"system":[%s],"messages":[`, demoModel, strings.Join(tools, ","), system)
}

// prose is a text of that many tokens, as the simulator counts them.
func prose(tokens int) string {
	const line = "The demo has nothing to say, and says it at the length of a coding agent at work. "
	bytes := 4 * tokens
	return strings.Repeat(line, bytes/len(line)+1)[:bytes]
}

// logNormal draws a number of this median, 1 to most.
func logNormal(median, sigma float64, most int) int {
	return int(min(max(median*math.Exp(sigma*rand.NormFloat64()), 1), float64(most)))
}
