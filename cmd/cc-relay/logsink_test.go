package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

func TestTheLevelChangesForAllLoggersThatAreOut(t *testing.T) {
	var out bytes.Buffer
	log, sink := newLogger(config.Logging{Level: "info", Format: "json"}, &out)
	derived := log.With().Str("part", "pool").Logger()
	say := func(what string) {
		derived.Debug().Msg("debug " + what)
		derived.WithLevel(zerolog.InfoLevel).Msg("info " + what)
		derived.Warn().Msg("warn " + what)
	}
	say("1")
	require.NoError(t, sink.SetLevel("debug"))
	say("2")
	require.NoError(t, sink.SetLevel("warn"))
	say("3")
	require.ErrorContains(t, sink.SetLevel("loud"), `log level "loud" is none of trace, debug`)
	require.ErrorContains(t, sink.SetLevel("disabled"), "is none of")
	say("4")
	require.NoError(t, sink.SetLevel(""))
	say("5")
	sink.close()
	var got []string
	for line := range strings.Lines(out.String()) {
		var record struct{ Level, Message string }
		require.NoError(t, json.Unmarshal([]byte(line), &record), line)
		assert.True(t, strings.HasPrefix(record.Message, record.Level), line)
		got = append(got, record.Message)
	}
	assert.Equal(t, []string{"info 1", "warn 1", "debug 2", "info 2", "warn 2", "warn 3", "warn 4", "info 5", "warn 5"}, got)
}

// A record that is not written gets no event: what its fields would cost is not spent.
func TestASuppressedRecordCostsNothing(t *testing.T) {
	log, sink := newLogger(config.Logging{}, io.Discard)
	defer sink.close()
	assert.Nil(t, log.Debug())
	assert.Nil(t, log.WithLevel(zerolog.DebugLevel))
	assert.LessOrEqual(t, log.GetLevel(), zerolog.TraceLevel, "who compares it with a level must go on to ask for an event")
	assert.Zero(t, testing.AllocsPerRun(100, func() { log.Debug().Str("key_id", "a").Int("n", 1).Msg("no") }))
}

func TestTheConsoleIsForReading(t *testing.T) {
	out := &counted{}
	log, sink := newLogger(config.Logging{Format: "console"}, out)
	log.Info().Str("key_id", "0123456789ab").Msg("key serves again")
	_, _ = sink.queue.Write([]byte("not a record\n"))
	log.Warn().Msg("second")
	sink.close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3)
	assert.Regexp(t, `^\S+ INF key serves again key_id=0123456789ab$`, lines[0])
	assert.Equal(t, "not a record", lines[1])
	assert.Regexp(t, ` WRN second$`, lines[2])
	assert.Equal(t, 1, out.writes)
}

// testConsoleCannotBeForged: whatever is in a field, a record is one line that moves no
// terminal, in both formats.
func testConsoleCannotBeForged(t *testing.T) {
	for _, format := range []string{"console", "json"} {
		out := &counted{}
		log, sink := newLogger(config.Logging{Format: format}, out)
		controls := []string{"\n", "\r\n", "\x1b[2J", "\x1b]0;t\x07", "\x00", "\x08"}
		for _, c := range controls {
			log.Warn().Str("model", "x"+c+"2026-01-01T00:00:00Z INF forged").Err(errors.New("y"+c)).Strs("all", []string{c}).Any("any", map[string]string{c: c}).Msg("request")
		}
		sink.close()
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		assert.Len(t, lines, len(controls), format)
		for _, line := range lines {
			for _, char := range line {
				assert.GreaterOrEqual(t, char, ' ', "%s: %q", format, line)
			}
		}
	}
}

// Rendering is the log's own work: a logger's caller hands over JSON.
func TestTheConsoleRendersBehindTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &counted{}
		log, sink := newLogger(config.Logging{Format: "console"}, out)
		log.Info().Msg("hello")
		assert.Regexp(t, `^\{"level":"info".*"message":"hello"\}`, string(sink.queue.waiting))
		sink.close()
		assert.Contains(t, out.String(), "INF hello")
	})
}

func TestDropsAreToldOnceAndCountedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &counted{block: make(chan struct{})}
		log, sink := newLogger(config.Logging{Format: "console"}, out)
		record := append(bytes.Repeat([]byte("x"), logBytes-1), '\n')
		_, _ = sink.queue.Write(record)
		time.Sleep(2 * logGather) // it is being written, and stuck
		_, _ = sink.queue.Write(record)
		log.Info().Msg("lost")
		log.Info().Msg("lost")
		assert.EqualValues(t, 2, sink.Dropped())
		close(out.block)
		time.Sleep(2 * logPace)
		log.Info().Msg("heard")
		time.Sleep(2 * logPace)
		assert.EqualValues(t, 2, sink.Dropped())
		sink.close()
		assert.Equal(t, 1, strings.Count(out.String(), "records were dropped dropped=2"), out.String()[len(out.String())-200:])
		assert.NotContains(t, out.String(), "<nil>")
		assert.Contains(t, out.String(), "INF heard")
		log.Info().Msg("too late")
		assert.EqualValues(t, 3, sink.Dropped())
	})
}

// A full pipe is a log that nobody reads: writes to it wait for ever.
func testFullPipe(t *testing.T) {
	for _, format := range []string{"json", "console"} {
		t.Run(format, func(t *testing.T) {
			unread, pipe, err := os.Pipe()
			require.NoError(t, err)
			fill(t, pipe)
			log, sink := newLogger(config.Logging{Format: format}, pipe)
			const writers, each = 8, 20_000
			long := strings.Repeat("l", 100)
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for i := range each {
						log.Info().Int("i", i).Str("pad", long).Msg("request")
					}
				})
			}
			wg.Wait() // or the test never ends
			dropped := sink.Dropped()
			assert.Greater(t, dropped, uint64(writers*each/2), "of %d records", writers*each)

			read := make(chan string)
			go func() {
				var all bytes.Buffer
				_, _ = io.Copy(&all, unread)
				read <- all.String()
			}()
			sink.close()
			<-sink.queue.done // close may have given up on a slow machine
			require.NoError(t, pipe.Close())
			all := <-read
			assert.EqualValues(t, writers*each, uint64(strings.Count(all, long))+dropped, "records read and dropped")
			assert.Contains(t, all, "the log is too slow; records were dropped")
		})
	}
}

func testStuckAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &counted{block: make(chan struct{})}
		log, sink := newLogger(config.Logging{}, out)
		log.Info().Msg("last words")
		from := time.Now()
		sink.close()
		assert.Equal(t, logLast, time.Since(from))
		close(out.block)
	})
}

// fill leaves no room in a pipe.
func fill(t *testing.T, pipe *os.File) {
	t.Helper()
	conn, err := pipe.SyscallConn()
	require.NoError(t, err)
	zeros := make([]byte, 4096)
	require.NoError(t, conn.Write(func(fd uintptr) bool {
		for {
			if _, err := syscall.Write(int(fd), zeros); err != nil {
				return true
			}
		}
	}))
}

func BenchmarkLog(b *testing.B) {
	for _, level := range []string{"info", "debug"} {
		b.Run(fmt.Sprintf("debug record at %s", level), func(b *testing.B) {
			log, sink := newLogger(config.Logging{Level: level}, io.Discard)
			defer sink.close()
			b.ReportAllocs()
			for b.Loop() {
				if e := log.Debug(); e != nil {
					e.Str("key_id", "0123456789ab").Str("class", "sonnet").Msg("key chosen")
				}
			}
		})
	}
}
