package main

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/rs/zerolog"
)

// logSink is what is behind a logger and all that are derived from it.
type logSink struct {
	level *liveLevel
	queue *logQueue
}

// SetLevel changes what is logged from now on: trace, debug, info, warn or error;
// empty is info. It may be called concurrently. Error: another name.
func (s *logSink) SetLevel(name string) error { return s.level.set(name) }

// Dropped is how many records were lost so far, for the log was too slow.
func (s *logSink) Dropped() uint64 { return s.queue.Dropped() }

// close writes what waits; later records are dropped.
func (s *logSink) close() { s.queue.close() }

// liveLevel is a zerolog level that can change while loggers have it: their own level
// is a value in each of them. The zero liveLevel is debug. What it suppresses gets no
// event, so Debug() returns nil as ever, and costs no allocation; the loggers' own
// level is the lowest.
type liveLevel struct{ now atomic.Int32 }

// Sample implements zerolog.Sampler.
func (l *liveLevel) Sample(level zerolog.Level) bool { return int32(level) >= l.now.Load() }

func (l *liveLevel) set(name string) error {
	level := zerolog.InfoLevel
	switch name {
	case "":
	case "trace", "debug", "info", "warn", "error":
		level, _ = zerolog.ParseLevel(name)
	default:
		return fmt.Errorf("log level %q is none of trace, debug, info, warn, error", name)
	}
	l.now.Store(int32(level))
	return nil
}

// consoleLog makes lines of JSON readable, many at a time. It stands behind a queue,
// because it takes longer than all else that is done for a record.
type consoleLog struct {
	out  io.Writer
	text bytes.Buffer
	view zerolog.ConsoleWriter
}

func newConsoleLog(out io.Writer) *consoleLog {
	c := &consoleLog{out: out}
	c.view = zerolog.ConsoleWriter{Out: &c.text, NoColor: !isTerminal(out)}
	return c
}

// Write implements io.Writer for whole lines. A line that is no record passes as it is.
func (c *consoleLog) Write(lines []byte) (int, error) {
	c.text.Reset()
	for line := range bytes.Lines(lines) {
		if _, err := c.view.Write(line); err != nil {
			c.text.Write(line)
		}
	}
	if _, err := c.out.Write(c.text.Bytes()); err != nil {
		return 0, err
	}
	return len(lines), nil
}
