package simulator

import (
	"encoding/binary"
	"hash/maphash"
)

const (
	bytesPerToken = 4
	// maxImageTokens is about what the largest image costs, whatever its bytes:
	// https://platform.claude.com/docs/en/build-with-claude/vision.
	maxImageTokens = 1600
)

// CountTokens is the simulator's tokenizer: four bytes are a token, a rest counts
// whole. Of a prompt it counts the JSON bytes of the values of each block, without
// cache_control, at most 1,600 tokens an image; of an answer the bytes of text,
// tool input, and thinking.
func CountTokens(bytes int) int { return (bytes + bytesPerToken - 1) / bytesPerToken }

// chain hashes a prompt piece by piece: each sum stands for all pieces so far. Its
// seed is new in every process, as a cache lives no longer than that.
type chain struct {
	hash maphash.Hash
	sum  uint64
}

func newChain(seed maphash.Seed) *chain {
	c := &chain{}
	c.hash.SetSeed(seed)
	return c
}

// mix adds one setting or block; parts are framed by length, so that moving a byte
// from one part to the next changes the sum.
func (c *chain) mix(parts ...[]byte) {
	var n [8]byte
	c.hash.Reset()
	binary.LittleEndian.PutUint64(n[:], c.sum)
	_, _ = c.hash.Write(n[:])
	for _, p := range parts {
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		_, _ = c.hash.Write(n[:])
		_, _ = c.hash.Write(p)
	}
	c.sum = c.hash.Sum64()
}
