package main

import (
	stdlog "log"

	"github.com/rs/zerolog"
)

// serverLog takes net/http's own complaints, which are about connections and may
// quote what came over them: only that there was one is logged.
func serverLog(log zerolog.Logger) *stdlog.Logger {
	return stdlog.New(quiet{log}, "", 0)
}

type quiet struct{ log zerolog.Logger }

func (q quiet) Write(p []byte) (int, error) {
	q.log.Debug().Int("bytes", len(p)).Msg("the HTTP server reported a connection error")
	return len(p), nil
}
