package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Marks are in every canary, right behind what all values of its kind begin with. They
// have no meaning in any encoding, so one that is found is a canary.
const (
	secretMark = "Zq7KxW9pVt"
	promptMark = "Jd4HyB6mQs"
	plantMark  = "Pl2GnC8rXk"
)

// Secrets of the relays. One is in each place and each form that a configuration has.
var (
	providerKeys = map[string][]string{"a": keys("a", 6), "b": keys("b", 6)}
	headerSecret = map[string]string{"a": "tenant-" + secretMark + "-of-a-0123456789", "b": "session-" + secretMark + "-of-b-0123456789"}
	clientTokens = []string{"rt-" + secretMark + "-alice-0a1b2c3d", "rt-" + secretMark + "-bob-4e5f6a7b", "rt-" + secretMark + "-carol-8c9d0e1f"}
	traceToken   = "otlp-" + secretMark + "-collector-55aa"
)

func keys(name string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("sk-ant-api03-%s-%s-%d-AA", secretMark, name, i))
	}
	return all
}

// known are the secrets that the relay has been told, and so takes out of texts.
func known() []string {
	all := append(slices.Clone(clientTokens), headerSecret["a"], headerSecret["b"])
	return append(append(all, providerKeys["a"]...), providerKeys["b"]...)
}

// forms are the ways in which a mark may be written.
func forms(mark string) [][]byte {
	all := []string{mark, strings.ToLower(mark), strings.ToUpper(mark), hex.EncodeToString([]byte(mark))}
	percent := ""
	for _, c := range []byte(mark) {
		percent += fmt.Sprintf("%%%02X", c)
	}
	all = append(all, percent)
	for shift := range 3 { // base64 of a text that has the mark somewhere in it
		whole := base64.RawStdEncoding.EncodeToString([]byte("xxx"[:shift] + mark))
		all = append(all, whole[(shift*8+5)/6:len(whole)-1])
	}
	var out [][]byte
	for _, f := range all {
		out = append(out, []byte(f))
	}
	return out
}

var secretForms, promptForms, plantForm = forms(secretMark), forms(promptMark), []byte(plantMark)

func holds(text []byte, forms [][]byte) bool {
	return slices.ContainsFunc(forms, func(f []byte) bool { return bytes.Contains(text, f) })
}

// output is one kind of what came out.
type output struct {
	bytes, lines                     atomic.Int64
	secrets, prompts, planted, drill atomic.Int64 // lines with one of them
}

// findings are all outputs, and the first lines that should not be.
type findings struct {
	mu       sync.Mutex
	outputs  map[string]*output
	examples []string
	facts    map[string]int64
	plantsOf []map[string]bool // of each round: in which outputs the one sent through was found
}

func newFindings() *findings {
	return &findings{outputs: map[string]*output{}, facts: map[string]int64{}}
}

func (f *findings) output(name string) *output {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.outputs[name] == nil {
		f.outputs[name] = &output{}
	}
	return f.outputs[name]
}

func (f *findings) count(fact string, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.facts[fact] += n
}

// look searches one line of an output. Where own is not "", it is the prompt that
// belongs there.
func (f *findings) look(o *output, name string, line []byte, own string) {
	o.bytes.Add(int64(len(line)))
	o.lines.Add(1)
	if bytes.Contains(line, plantForm) {
		o.planted.Add(1)
	}
	if holds(line, secretForms) {
		o.secrets.Add(1)
		f.example(name, "secret", line, secretForms)
	}
	if own != "" {
		line = bytes.ReplaceAll(line, []byte(own), nil)
	}
	if holds(line, promptForms) {
		o.prompts.Add(1)
		f.example(name, "prompt", line, promptForms)
	}
}

func (f *findings) example(name, kind string, line []byte, forms [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.examples) >= 20 {
		return
	}
	for _, form := range forms {
		if i := bytes.Index(line, form); i >= 0 {
			line = line[max(0, i-300):min(len(line), i+300)]
			break
		}
	}
	f.examples = append(f.examples, fmt.Sprintf("%s: a %s in %q", name, kind, line))
}

// text searches a whole text of an output.
func (f *findings) text(name string, text []byte) {
	o := f.output(name)
	for line := range bytes.Lines(text) {
		f.look(o, name, line, "")
	}
}

// stream searches what r gives until it ends.
func (f *findings) stream(name string, r io.Reader) {
	o := f.output(name)
	lines := newLineReader(r)
	for {
		line, err := lines.next()
		if len(line) > 0 {
			f.look(o, name, line, "")
		}
		if err != nil {
			return
		}
	}
}

// plantOneInEach writes canaries to each output, as a leak would, and takes the counts
// back that it made: an output where it was not seen is not searched.
func (f *findings) plantOneInEach() {
	examples := f.examples
	for _, name := range slices.Sorted(maps.Keys(f.outputs)) {
		o := f.output(name)
		before, prompts := o.secrets.Load(), o.prompts.Load()
		f.text(name, []byte(`{"level":"info","header":"Bearer `+known()[0]+`"}`+"\n"))
		f.text(name, []byte(`{"level":"info","body":"`+promptOf(0)+`"}`+"\n"))
		if o.secrets.Load() == before+1 && o.prompts.Load() == prompts+1 {
			o.drill.Add(1)
		}
		o.secrets.Store(before)
		o.prompts.Store(prompts)
	}
	f.examples = examples
}

// promptOf is the canary in the prompt of one request.
func promptOf(n int64) string { return fmt.Sprintf("%s-%08d-end", promptMark, n) }

// check is what is wrong with the findings.
func (f *findings) check() error {
	for _, name := range slices.Sorted(maps.Keys(f.outputs)) {
		o := f.outputs[name]
		switch {
		case o.secrets.Load() > 0 || o.prompts.Load() > 0:
			return fmt.Errorf("%d secrets and %d prompts came out in %s; the first lines are above", o.secrets.Load(), o.prompts.Load(), name)
		case o.drill.Load() != 1:
			return fmt.Errorf("what was planted in %s was not found", name)
		case o.lines.Load() <= 2:
			return fmt.Errorf("nothing came out in %s", name)
		}
	}
	for i, found := range f.plantsOf {
		if !found["admin"] || !found["traces"] {
			return fmt.Errorf("round %d: what was sent through the relay for all to see was found only in %v", i, slices.Sorted(maps.Keys(found)))
		}
	}
	if sent, asked := f.facts["requests sent"], f.facts["requests at providers"]; asked*2 < sent {
		return fmt.Errorf("providers saw only %d requests of %d: too few to prove anything", asked, sent)
	}
	return nil
}

// String is the result for reading.
func (f *findings) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| output | lines | MB | secrets | prompts | planted, found |\n| --- | ---: | ---: | ---: | ---: | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(f.outputs)) {
		o := f.outputs[name]
		found := "no"
		if o.drill.Load() == 1 {
			found = "yes"
		}
		fmt.Fprintf(&b, "| %s | %d | %.1f | %d | %d | %s |\n", name, o.lines.Load(), float64(o.bytes.Load())/1e6, o.secrets.Load(), o.prompts.Load(), found)
	}
	fmt.Fprintf(&b, "\n")
	for _, name := range slices.Sorted(maps.Keys(f.facts)) {
		fmt.Fprintf(&b, "- %s: %d\n", name, f.facts[name])
	}
	seen := map[string]int{}
	for _, found := range f.plantsOf {
		for name := range found {
			seen[name]++
		}
	}
	fmt.Fprintf(&b, "- relays that were sent a canary they cannot know: %d; found in", len(f.plantsOf))
	for i, name := range slices.Sorted(maps.Keys(seen)) {
		fmt.Fprintf(&b, "%s %s of %d", map[bool]string{true: ",", false: ""}[i > 0], name, seen[name])
	}
	b.WriteString("\n")
	for _, e := range f.examples {
		fmt.Fprintf(&b, "\n    %s\n", e)
	}
	return b.String()
}
