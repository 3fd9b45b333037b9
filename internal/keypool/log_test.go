package keypool_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// lines collects what is logged, as "level message".
type lines struct {
	mu     sync.Mutex
	logged []string
	hook   func() // called for each line, while it is written
}

func (l *lines) Write(line []byte) (int, error) {
	var entry struct{ Level, Message, Provider string }
	if err := json.Unmarshal(line, &entry); err != nil || entry.Provider != "test" {
		entry.Message = "unreadable: " + string(line)
	}
	if l.hook != nil {
		l.hook()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logged = append(l.logged, entry.Level+" "+entry.Message)
	return len(line), nil
}

// take returns and forgets the lines that begin with prefix.
func (l *lines) take(prefix string) (got []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.logged {
		if strings.HasPrefix(line, prefix) {
			got = append(got, line)
		}
	}
	l.logged = nil
	return got
}

func logged(tb testing.TB, level zerolog.Level, keys ...keypool.KeyConfig) (*keypool.KeyPool, *lines) {
	tb.Helper()
	out := &lines{}
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys, Logger: zerolog.New(out).Level(level)})
	require.NoError(tb, err)
	return p, out
}

func TestARunDryClassIsWarnedOfOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, out := logged(t, zerolog.DebugLevel, keyOf(0, 2, plenty, plenty))
		d := keypool.Demand{Class: opus}
		acquire(t, p, d)
		acquire(t, p, d)
		require.Empty(t, out.take("warn"))
		for range 50 {
			_ = refused(t, p, d)
		}
		assert.Equal(t, []string{"warn no key can serve"}, out.take("warn"))
		_ = refused(t, p, d)
		assert.Equal(t, []string{"debug no key can serve"}, out.take(""), "the others are no news")
		time.Sleep(30 * time.Second)
		acquire(t, p, d)
		_ = refused(t, p, d)
		assert.Equal(t, []string{"warn no key can serve"}, out.take("warn"), "it ran dry again")

		getKey(t, p)
		getKey(t, p)
		for range 3 {
			_, _, err := p.GetKey(t.Context())
			require.Error(t, err)
		}
		assert.Equal(t, []string{"warn no key can serve"}, out.take("warn"), "each class for itself")
	})
}

// A request that has tried all keys says nothing of what the next one will find.
func TestARequestThatExcludesKeysDoesNotMakeAClassDry(t *testing.T) {
	keys, ids := keysOf(2, 0, 0, 0)
	p, out := logged(t, zerolog.DebugLevel, keys...)
	for range 5 {
		acquire(t, p, keypool.Demand{Class: opus}).Settle(keypool.Usage{})
		_ = refused(t, p, keypool.Demand{Class: opus, Exclude: ids})
	}
	assert.Empty(t, out.take("warn"))
}

func TestOutagesAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p, out := logged(t, zerolog.InfoLevel, k)
		for range 5 {
			p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
			p.MarkKeyForbidden(k.ID(), opus, "client", true)
		}
		assert.Equal(t, []string{
			"warn key is out; check it at the provider, or remove it from the configuration",
			"warn key may not serve this class; check the model access of its account",
		}, out.take(""))
		time.Sleep(5 * time.Minute)
		probe := acquire(t, p, keypool.Demand{Class: opus})
		probe.Succeeded()
		probe.Succeeded()
		assert.Equal(t, []string{"info key serves again"}, out.take(""))
		p.MarkKeyExhausted(k.ID(), time.Second)
		p.MarkClassExhausted(k.ID(), opus, time.Second)
		assert.Equal(t, []string{"warn key cools down", "warn key cools down"}, out.take(""))
	})
}

func TestChoicesAreLoggedAtDebug(t *testing.T) {
	p, out := logged(t, zerolog.DebugLevel, keyOf(0, 0, 0, 0))
	getKey(t, p)
	acquire(t, p, keypool.Demand{Class: opus})
	assert.Equal(t, []string{"debug key chosen", "debug key chosen"}, out.take(""))
}

// Writing a log line may be slow, and may look at the pool: none is written
// under its lock.
func TestNothingIsLoggedUnderTheLock(t *testing.T) {
	deadlock := time.AfterFunc(30*time.Second, func() { panic("a log line was written while the pool was locked") })
	defer deadlock.Stop()
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 1, 0, 0)
		p, out := logged(t, zerolog.TraceLevel, k)
		looks := 0
		out.hook = func() {
			looks++
			p.GetStats()
			p.Keys()
			p.GetEarliestResetTime()
			_ = p.UpdateKeyFromHeaders(k.ID(), rateHeaders(1, 1)) // needs the lock for writing
		}
		getKey(t, p)
		_, _, err := p.GetKey(t.Context())
		require.Error(t, err)
		lease := acquire(t, p, keypool.Demand{Class: opus})
		_ = refused(t, p, keypool.Demand{Class: opus})
		lease.Settle(keypool.Usage{})
		p.MarkKeyExhausted(k.ID(), time.Second)
		p.MarkClassExhausted(k.ID(), opus, time.Second)
		p.MarkKeyForbidden(k.ID(), opus, "client", true)
		p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
		time.Sleep(5 * time.Minute)
		acquire(t, p, keypool.Demand{Class: opus}).Succeeded()
		assert.Equal(t, 10, looks, "every kind of line was written")
	})
}
