//go:build !amd64

package messages

// stringEnd is the index of the quote that ends a JSON string in text, which begins
// behind the quote that opens it; -1: it is not closed.
func stringEnd(text []byte) int { return nextQuote(text) }
