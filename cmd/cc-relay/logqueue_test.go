package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLogQueueWritesTogetherAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &counted{}
		q := newLogQueue(out)
		for i := range 100 {
			_, err := fmt.Fprintf(q, "record %d\n", i)
			require.NoError(t, err)
		}
		time.Sleep(2 * logGather)
		synctest.Wait()
		assert.Equal(t, 1, out.writes)
		_, _ = q.Write([]byte("last\n"))
		q.close()
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		require.Len(t, lines, 101)
		assert.Equal(t, "record 99", lines[99])
		assert.Equal(t, "last", lines[100])
		q.close() // twice is once
		_, err := q.Write([]byte("too late\n"))
		require.NoError(t, err)
	})
}

func TestASlowLogDropsAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &counted{block: make(chan struct{})}
		q := newLogQueue(out)
		record := bytes.Repeat([]byte("x"), 1<<20)
		_, _ = q.Write(record)
		time.Sleep(2 * logGather) // it is being written, and stuck
		for range 6 {             // four find room
			_, _ = q.Write(record)
		}
		close(out.block)
		q.close()
		assert.Contains(t, out.String(), `"dropped":2`)
		assert.Equal(t, 5<<20, strings.Count(out.String(), "x"))
	})
}

func TestLogQueueManyWriters(t *testing.T) {
	out := &counted{}
	q := newLogQueue(out)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 200 {
				_, _ = q.Write([]byte("a whole record\n"))
			}
		})
	}
	wg.Wait()
	q.close()
	assert.Equal(t, strings.Repeat("a whole record\n", 32*200), out.String())
}

// counted is a log that counts its writes and may be stuck.
type counted struct {
	bytes.Buffer
	writes int
	block  chan struct{}
}

func (c *counted) Write(p []byte) (int, error) {
	if c.block != nil {
		<-c.block
	}
	c.writes++
	return c.Buffer.Write(p)
}
