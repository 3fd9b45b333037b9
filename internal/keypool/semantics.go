package keypool

import (
	"math"
	"time"
)

// The two ways in which a provider may count output towards its limit; the public
// descriptions disagree. What a class does is found out by following both.
const (
	asProduced = iota // each token as it is produced (Anthropic's documentation)
	asPromised        // max_tokens when the request is admitted, adjusted at its end
)

const (
	ballotSize  = 20    // answers that decide
	ballotLeast = 4_000 // max_tokens of a request whose answer counts
	ballotGap   = 2_000 // tokens by which the two guesses differ at least: twice the rounding
)

// guess is the level of an output bucket as it would be under one of the two.
// The zero guess knows nothing.
type guess struct {
	limit, level float64
	at           time.Time
}

func (g *guess) take(now time.Time, n float64) {
	if g.limit == 0 {
		return
	}
	g.level = min(g.limit, g.level+max(0, now.Sub(g.at)).Minutes()*g.limit) - n
	g.at = now
}

// ballot counts which guess was nearer to what the answers of a class showed.
type ballot struct{ votes, promised int }

// dispatched notes what either guess expects the answer to show.
func (b *buckets) dispatched(now time.Time, h *hold) {
	b.promised += float64(h.maxTokens)
	h.producedAt, h.promisedAt = b.produced, b.promised
	b.guesses[asProduced].take(now, 0)
	b.guesses[asPromised].take(now, float64(h.maxTokens))
	h.expected = [2]float64{b.guesses[asProduced].level, b.guesses[asPromised].level}
	h.guessed = b.guesses[asProduced].limit > 0 && h.maxTokens >= ballotLeast
}

// ended gives back what a request did not use of its max_tokens.
func (b *buckets) ended(now time.Time, h *hold, output float64) {
	unused := max(0, float64(h.maxTokens)-output)
	b.promised -= unused
	b.guesses[asPromised].take(now, -unused)
}

// judge lets an answer vote for the guess that was nearer, and starts both anew
// from what it shows.
func (b *buckets) judge(now time.Time, h *hold, t triple, limit, age float64) {
	if t.remaining == 0 { // a debt of any size
		return
	}
	remaining := float64(t.remaining)
	if h.guessed && math.Abs(h.expected[asProduced]-h.expected[asPromised]) >= ballotGap {
		h.class.vote(math.Abs(remaining-h.expected[asPromised]) < math.Abs(remaining-h.expected[asProduced]))
	}
	level := min(limit, remaining+age*limit)
	b.guesses[asProduced] = guess{limit, level - (b.produced - h.producedAt), now}
	b.guesses[asPromised] = guess{limit, level - (b.promised - h.promisedAt), now}
}

func (c *class) vote(promised bool) {
	c.ballot.votes++
	if promised {
		c.ballot.promised++
	}
	if c.ballot.votes == ballotSize {
		c.reserve = 2*c.ballot.promised > ballotSize
		c.ballot = ballot{}
	}
}

// reserving reports whether the provider takes max_tokens in advance.
func (c *class) reserving() bool { return c.reserve }

// The estimates of a class that is new: bytes of English text and code in JSON
// for a token, and an answer's usual length.
const (
	firstRatio = 0.25 // tokens a byte
	leastRatio = 0.01
	mostRatio  = 2.0
	ratioStep  = 0.02

	firstOutput    = 400
	outputQuantile = 0.6 // of the answers stay below the prediction
	outputStep     = 0.02
	mostOutput     = 1_000_000 // a longer answer is a mistake in the report
)

// predicted is how many output tokens the answer is expected to have.
func (c *class) predicted(d *Demand) float64 {
	if d.MaxTokens > 0 {
		return min(c.output, float64(d.MaxTokens))
	}
	return c.output
}

// learn takes a complete answer's usage into the class's estimates.
func (c *class) learn(bytes int, u Usage) {
	if prompt := u.Input + u.CacheWrite + u.CacheRead; prompt > 0 && bytes > 0 {
		seen := min(max(float64(prompt)/float64(bytes), leastRatio), mostRatio)
		c.ratio += ratioStep * (seen - c.ratio)
	}
	if u.Output <= 0 || u.Output > mostOutput {
		return
	}
	step := outputStep * max(50, c.output)
	if float64(u.Output) > c.output {
		c.output += step * outputQuantile
	} else {
		c.output -= step * (1 - outputQuantile)
	}
}
