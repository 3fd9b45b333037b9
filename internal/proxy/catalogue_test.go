package proxy_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// The tests of rows of the catalogue of faults, by the rows' names.

// row is one of them.
type row struct {
	name string
	test func(*testing.T)
}

func TestFault(t *testing.T) {
	nowhereURL(t) // opens the poller's descriptors, which stay
	others := []row{{"P05", TestAPanicEndsOneRequest}, {"L05", TestAConversationMovesOnceWhenItsKeyDies}}
	for _, r := range slices.Concat(clientFaults, providerFaults, others) {
		t.Run(r.name, func(t *testing.T) {
			nothingOpen(t)
			leakFree(t)
			r.test(t)
		})
	}
}

func TestSecurity(t *testing.T) {
	for _, row := range securityRows {
		t.Run(row.id, func(t *testing.T) {
			for i, test := range row.tests {
				t.Run(itoa(i+1), test)
			}
		})
	}
}

// nothingOpen fails the test if descriptors of it are open once its cleanups are done.
func nothingOpen(t *testing.T) {
	before := openFiles(t)
	t.Cleanup(func() {
		assert.Eventually(t, func() bool { return openFiles(t) <= before }, patient, 10*time.Millisecond, "descriptors are left open")
	})
}

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/dev/fd")
	assert.NoError(t, err)
	return len(list)
}
