package messages

import "golang.org/x/sys/cpu"

// blockSize is what endInBlocks looks at in one step.
const blockSize = 64

//go:noescape
func endInBlocks(p *byte, n int) (end int, escaped bool)

// stringEnd is the index of the quote that ends a JSON string in text, which begins
// behind the quote that opens it; -1: it is not closed. Text that holds code has a
// quote after a backslash in every line or two, which is what looking for the next
// quote, and then behind it, spends its time on.
func stringEnd(text []byte) int {
	n := len(text) &^ (blockSize - 1)
	if n == 0 || !cpu.X86.HasAVX2 {
		return nextQuote(text)
	}
	end, escaped := endInBlocks(&text[0], n)
	if end >= 0 {
		return end
	}
	for i := n; i < len(text); i++ {
		switch {
		case escaped:
			escaped = false
		case text[i] == '\\':
			escaped = true
		case text[i] == '"':
			return i
		}
	}
	return -1
}
