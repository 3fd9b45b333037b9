package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

const traceHeader = "t_ms,conversation,input_tokens,output_tokens,parent,shared_blocks,system,system_blocks"

// No number of a trace is above maxField (as a time: 49 days), no prompt and no
// answer longer than maxPrompt tokens.
const (
	maxField  = 1 << 32
	maxPrompt = 10_000_000
)

// row is one line of a trace file.
type row struct {
	ms                                            int
	conversation                                  string
	input, output, parent, shared, system, sysLen int
}

func readTraceFile(path string) (Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	tr, err := parseTrace(f)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", path, err)
	}
	return tr, nil
}

// parseTrace reads a CSV with the columns of traceHeader, without quotes: t_ms of
// arrival, a name of the conversation, tokens, parent (number of an earlier row,
// the first being 0, or -1), the blocks of 512 tokens shared with it, and id and
// blocks of a prefix common to many conversations (-1 and 0: none). A turn with a
// parent begins after its answer and a pause, taken from the times by assuming that
// the answer took as long as an idle provider here would.
func parseTrace(r io.Reader) (Trace, error) {
	lines := bufio.NewScanner(r)
	if !lines.Scan() || strings.TrimSpace(lines.Text()) != traceHeader {
		return nil, fmt.Errorf("line 1: want the header %s", traceHeader)
	}
	var tr Trace
	var at []int // t_ms of each row
	names := make(map[string]int)
	for n := 2; lines.Scan(); n++ {
		row, err := parseRow(lines.Text())
		if err == nil {
			err = row.check(tr, at)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if _, ok := names[row.conversation]; !ok {
			names[row.conversation] = len(names)
		}
		tr = append(tr, row.turn(names[row.conversation], len(tr), tr, at))
		at = append(at, row.ms)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(tr) == 0 {
		return nil, fmt.Errorf("line 2: want at least one row")
	}
	tr.link()
	return tr, nil
}

func parseRow(line string) (row, error) {
	var r row
	fields := strings.Split(line, ",")
	names := strings.Split(traceHeader, ",")
	if len(fields) != len(names) {
		return r, fmt.Errorf("got %d columns, want %d", len(fields), len(names))
	}
	into := []*int{&r.ms, nil, &r.input, &r.output, &r.parent, &r.shared, &r.system, &r.sysLen}
	for i, field := range fields {
		field = strings.TrimSpace(field)
		if into[i] == nil {
			r.conversation = field
			continue
		}
		v, err := strconv.Atoi(field)
		if err != nil || v < -1 || v > maxField {
			return r, fmt.Errorf("%s: got %q, want a whole number up to %d", names[i], field, maxField)
		}
		*into[i] = v
	}
	return r, nil
}

func (r row) check(tr Trace, at []int) error {
	own := r.input / blockTokens
	switch {
	case r.ms < 0 || r.shared < 0 || r.sysLen < 0:
		return fmt.Errorf("t_ms, shared_blocks and system_blocks must not be negative")
	case r.conversation == "":
		return fmt.Errorf("conversation: want a name")
	case r.input < 1 || r.output < 1 || r.input > maxPrompt || r.output > maxPrompt:
		return fmt.Errorf("input_tokens and output_tokens: got %d and %d, want 1 to %d", r.input, r.output, maxPrompt)
	case r.parent >= len(tr):
		return fmt.Errorf("parent: got %d, want an earlier row, 0 to %d, or -1", r.parent, len(tr)-1)
	case r.parent < 0 && r.shared > 0:
		return fmt.Errorf("shared_blocks: got %d without a parent, want 0", r.shared)
	case r.parent >= 0 && at[r.parent] > r.ms:
		return fmt.Errorf("t_ms: got %d, before its parent at %d", r.ms, at[r.parent])
	case r.parent >= 0 && r.shared > min(own, tr[r.parent].blocks()):
		return fmt.Errorf("shared_blocks: got %d, want at most the %d whole blocks of both prompts", r.shared, min(own, tr[r.parent].blocks()))
	case r.sysLen > own:
		return fmt.Errorf("system_blocks: got %d, want at most the %d whole blocks of the prompt", r.sysLen, own)
	case r.system < 0 && r.sysLen > 0:
		return fmt.Errorf("system: got %d with %d blocks, want an id", r.system, r.sysLen)
	}
	return nil
}

// turn is the row as number n of the trace so far.
func (r row) turn(conversation, n int, tr Trace, at []int) Turn {
	t := Turn{
		Conversation: conversation, Input: r.input, Output: r.output, Parent: r.parent,
		Shared: r.shared, System: r.system, SystemBlocks: r.sysLen,
		Start: time.Duration(r.ms) * time.Millisecond,
		Bytes: 4 * (0.8 + 0.4*float64(mix(uint64(n))>>11)/(1<<53)),
	}
	if r.parent >= 0 {
		p := tr[r.parent]
		answer := timeToFirstByte(p.Input-p.Shared*blockTokens) + time.Duration(p.Output)*perOutput
		t.Gap = max(0, time.Duration(r.ms-at[r.parent])*time.Millisecond-answer)
	}
	return t
}
