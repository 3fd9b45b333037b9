// Command matrix runs the tests that are named after rows of the catalogue of faults and
// holds them against the list of all rows: which hold, which fail, which wait for a part
// that is not built yet, and why. It ends with 1 where a row fails, or where one neither
// waits nor has a test.
//
//	go run ./bench/matrix                       # from the repository's root
//	go run ./bench/matrix -write docs/faults.md
//	go run ./bench/matrix -from tests.json      # of a run of `go test -json` before
//
// A test belongs to a row by its name: TestFault/P09, TestSecurity/S13, a part of one,
// such as TestFault/P09/twice, or TestSecurity_S03_S06_EachRoute. What a row asks for is
// a line of the table in rows.go.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil {
		return
	}
	if !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench/matrix:", err)
	}
	os.Exit(1)
}

// modules are the directories whose tests are run, each with a go.mod.
var modules = []string{".", "e2e"}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("matrix", flag.ContinueOnError)
	flags.SetOutput(stderr)
	page := flags.String("write", "", "also write the matrix into this page, between its markers")
	from := flags.String("from", "", "a file with what `go test -json` printed; empty: run the tests")
	if err := flags.Parse(args); err != nil {
		return err
	}
	out, err := outputs(ctx, *from, stderr)
	if err != nil {
		return err
	}
	got, err := read(out)
	if err != nil {
		return err
	}
	m := join(rows, got)
	text := m.markdown()
	_, _ = io.WriteString(stdout, text)
	for _, name := range got.failed {
		_, _ = fmt.Fprintf(stdout, "\nFAIL %s\n%s", name, got.output[name])
	}
	if *page != "" {
		if err := insert(*page, text); err != nil {
			return err
		}
	}
	return m.err()
}

// outputs is what the tests print, one JSON object a line.
func outputs(ctx context.Context, from string, stderr io.Writer) (io.Reader, error) {
	if from != "" {
		text, err := os.ReadFile(from)
		return bytes.NewReader(text), err
	}
	var all bytes.Buffer
	for _, dir := range modules {
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, "go", "test", "-json", "-count=1", "-run", "^(TestFault|TestSecurity)", "./...")
		cmd.Dir = dir
		cmd.Stdout, cmd.Stderr = &out, stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return nil, err
		}
		if err != nil && !bytes.Contains(out.Bytes(), []byte(`"Action":"fail"`)) { // else what failed is in the output
			fmt.Fprintf(&out, "{\"Action\":\"fail\",\"Package\":\"the module in %s\"}\n", dir)
		}
		_, _ = out.WriteTo(&all)
	}
	return &all, nil
}

// Markers of the page, each on a line of its own, between which the matrix stands.
const (
	begin = "<!-- matrix -->\n"
	end   = "<!-- /matrix -->\n"
)

// insert replaces what stands between the markers of the page.
func insert(page, text string) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no place for the matrix: it needs the lines %q and %q", page, begin, end)
	}
	return os.WriteFile(page, []byte(before+begin+"\n"+text+"\n"+end+after), 0o644) //nolint:gosec // a page for all to read
}
