package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// clientFaults are the rows of faults of clients. C06 and C26 are about the server as
// it is configured and are tested in cmd/cc-relay, as is the kernel's part of C14; C22
// is about HTTP/2.
var clientFaults = []row{
	{"C01", testNoToken},
	{"C02", testCredentials},
	{"C03", testHeaderBlocks},
	{"C04", testLargeBodies},
	{"C05", testShortBodies},
	{"C07", func(t *testing.T) {
		t.Run("silent", testSlowBodies)
		t.Run("trickled", testTrickledBodies)
	}},
	{"C08", testBadJSON},
	{"C09", testAmbiguousBodies},
	{"C10", testTheUnknownPasses},
	{"C11", testClientLeavesBeforeTheFirstByte},
	{"C12", testClientLeavesInTheMiddle},
	{"C13", testClientHalfCloses},
	{"C14", testClientVanishes},
	{"C15", testSlowReaders},
	{"C16", testRefusalsComeBeforeTheBody},
	{"C17", testFraming},
	{"C18", testTinyChunks},
	{"C19", testHopByHopAbuse},
	{"C20", testSpoofedAddresses},
	{"C21", testProxyFormsAreRefusedAndClosed},
	{"C23", testDuplicates},
	{"C24", testIdempotencyKeys},
	{"C25", testPaths},
}

func testNoToken(t *testing.T) {
	t.Run("who may ask", testWhoMayAsk)
	t.Run("one answer for all", testRefusalsAreUniform)
	t.Run("and one time", testRefusalsTakeTheSameTime)
}

func testLargeBodies(t *testing.T) {
	t.Run("at the limit", testBodiesOverTheLimit)
	t.Run("far beyond", testBodiesWithoutEnd)
}

func testShortBodies(t *testing.T) {
	t.Run("half-closed", testBodiesThatEndEarly)
	t.Run("closed", testBodiesOfClientsThatLeave)
}

func testSlowBodies(t *testing.T) {
	t.Run("silent", testClientsThatFallSilentInTheirBody)
	t.Run("steady", testSlowBodiesAndSlowProviders)
	t.Run("no key is held", testNoKeyIsHeldForABody)
}

func testBadJSON(t *testing.T) {
	t.Run("refused", testBodiesThatAreRefused)
	t.Run("left to the provider", testTextThatIsNotUTF8)
}

func testTheUnknownPasses(t *testing.T) {
	t.Run("bodies", testBodiesReachTheProviderByteForByte)
	t.Run("headers", testUnknownHeadersPass)
}

func testSlowReaders(t *testing.T) {
	t.Run("a stream that nobody reads", testAClientThatDoesNotRead)
	t.Run("the provider waits, the neighbours do not", testBackPressure)
	t.Run("slow but steady", testSteadyReader)
	t.Run("is no silent provider", testASlowClientIsNotASilentProvider)
}

func testFraming(t *testing.T) {
	t.Run("malformed", testMalformedRequestsNeverReachAProvider)
	t.Run("chunked", testChunkedRequestsAreServedOnceAndClosed)
	t.Run("let pass", testOddFramingIsWrittenAnew)
}

func testPaths(t *testing.T) {
	t.Run("table", testPathsMatchExactly)
	t.Run("legal", testLegalPaths)
	t.Run("drawn", testDrawnPaths)
}

// dial is a connection to the relay, closed when the test ends.
func (r *relay) dial() *net.TCPConn {
	r.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = c.Close() })
	require.NoError(r.t, c.SetDeadline(time.Now().Add(patient)))
	return c.(*net.TCPConn)
}

// postOf is a whole request of alice as it goes over the wire.
func postOf(body string, headers ...string) string {
	return postHead + strings.Join(headers, "") + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

// answersWell is a raw provider that serves every request.
func answersWell(c net.Conn, _ int) bool {
	_, err := io.WriteString(c, lengthy("200 OK", jsonType, message))
	return err == nil
}

// headersOf are the headers of a request as it came.
func headersOf(t *testing.T, req rawRequest) http.Header {
	t.Helper()
	h := http.Header{}
	for _, line := range strings.Split(req.head, "\r\n")[1:] {
		name, value, ok := strings.Cut(line, ": ")
		require.True(t, ok, "header line %q", line)
		h.Add(name, value)
	}
	return h
}

// requireNext takes the next request that came to a provider.
func (u *rawUpstream) requireNext(t *testing.T) rawRequest {
	t.Helper()
	select {
	case req := <-u.requests:
		return req
	case <-time.After(patient):
		require.FailNow(t, "the provider was not asked")
		return rawRequest{}
	}
}

// requireServedStill checks that whoever comes next is served as ever.
func requireServedStill(t *testing.T, r *relay) {
	t.Helper()
	requireServed(t, r.send(call{token: bobToken, body: ask(opus, false)}), false)
	assert.Eventually(t, func() bool { return len(r.inFlight()) == 0 }, patient, time.Millisecond, "leases are left open")
}
