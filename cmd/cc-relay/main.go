// Command cc-relay pools API keys and providers behind one address of the
// Anthropic Messages API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run executes the command line and returns the exit code: 0 for success, 1 for
// an error, which it prints, and others where a command says so.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "cc-relay",
		Short:         "Relay coding agents to model providers through a pool of keys",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), demoCommand(), simulateCommand(), configCommand(), versionCommand(),
		statusCommand(), explainCommand(), requestsCommand(), eventsCommand(), keyCommand(), providerCommand(), breakerCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if code := exitCode(0); errors.As(err, &code) {
		return int(code)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "cc-relay:", err)
		return 1
	}
	return 0
}
