package messages_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

func inspect(tb testing.TB, body string) messages.Request {
	tb.Helper()
	req, err := messages.Inspect([]byte(body), 0)
	require.NoError(tb, err, "body %s", body)
	return req
}

func sent(t tester, req *messages.Request) string {
	t.Helper()
	r := req.NewBody()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.Equal(t, req.Len(), int64(len(b)), "Len and what is read differ")
	return string(b)
}

func TestSetModel(t *testing.T) {
	tests := []struct{ name, body, model, want string }{
		{"not called", `{ "model" : "m", "x": 1e2 }`, "", `{ "model" : "m", "x": 1e2 }`},
		{"shorter", `{"a":[1 , 2],"model":"claude-opus-5-5","b":"\u0041"}`, "m", `{"a":[1 , 2],"model":"m","b":"\u0041"}`},
		{"longer", `{"model":"m"}`, "anthropic.claude-opus-5-5", `{"model":"anthropic.claude-opus-5-5"}`},
		{"escapes needed", `{"model":"m"}`, "a\"b\\c", `{"model":"a\"b\\c"}`},
		{"spaces kept", "{\n\"model\" :\t\"m\"\n}", "n", "{\n\"model\" :\t\"n\"\n}"},
		{"own name keeps the client's spelling", `{"model":"\u006d"}`, "m", `{"model":"\u006d"}`},
		{"deeper model stays", `{"x":{"model":"m"},"model":"m"}`, "n", `{"x":{"model":"m"},"model":"n"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := inspect(t, tt.body)
			if tt.model != "" {
				req.SetModel(tt.model)
			}
			assert.Equal(t, tt.want, sent(t, &req))
			assert.Equal(t, tt.want, sent(t, &req), "second reader")
			assert.Equal(t, tt.body, string(req.Body))
		})
	}
}

func TestSetModelAgain(t *testing.T) {
	req := inspect(t, `{"model":"m","a":1}`)
	req.SetModel("first")
	before := req.NewBody()
	req.SetModel("second")
	assert.JSONEq(t, `{"model":"second","a":1}`, sent(t, &req))
	assert.Equal(t, "m", string(req.Model), "Model stays what the client asked for")
	req.SetModel("")
	assert.Equal(t, `{"model":"m","a":1}`, sent(t, &req), "the client's own bytes")
	old, err := io.ReadAll(before)
	require.NoError(t, err)
	assert.Equal(t, `{"model":"first","a":1}`, string(old), "a reader given out before")
}

func TestNewBodyInSmallReads(t *testing.T) {
	req := inspect(t, `{"model":"m","messages":[{"role":"user","content":"hello"}]}`)
	req.SetModel("other")
	want := sent(t, &req)
	for size := 1; size < len(want)+2; size++ {
		var got bytes.Buffer
		_, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{req.NewBody()}, make([]byte, size))
		require.NoError(t, err)
		require.Equal(t, want, got.String(), "reads of %d bytes", size)
	}
}

func TestNewBodyWritesItself(t *testing.T) {
	req := inspect(t, `{"model":"m","stream":true}`)
	req.SetModel("other")
	body, ok := req.NewBody().(io.WriterTo)
	require.True(t, ok, "the body is no io.WriterTo")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	got := make(chan []byte)
	go func() {
		defer close(got)
		if conn, err := l.Accept(); err == nil {
			b, _ := io.ReadAll(conn)
			got <- b
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	n, err := body.WriteTo(conn)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	assert.Equal(t, req.Len(), n)
	assert.Equal(t, `{"model":"other","stream":true}`, string(<-got))
}

func TestNewBodyClosed(t *testing.T) {
	req := inspect(t, `{"model":"m"}`)
	body := req.NewBody()
	require.NoError(t, body.Close())
	require.NoError(t, body.Close(), "second close")
	n, err := body.Read(make([]byte, 8))
	assert.Zero(t, n)
	require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	written, err := body.(io.WriterTo).WriteTo(io.Discard)
	assert.Zero(t, written)
	require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
}

// Transports close a body while another goroutine may be reading it; after Close
// its buffer is reused. Under -race this fails if a byte is touched afterwards.
func TestNewBodyClosedWhileRead(t *testing.T) {
	for range 50 {
		raw := agentBody(t, 4_000)
		req, err := messages.Inspect(raw, 0)
		require.NoError(t, err)
		body := req.NewBody()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{body}, make([]byte, 64))
		})
		require.NoError(t, body.Close())
		clear(raw)
		wg.Wait()
	}
}

func TestNewBodyCopiesNothing(t *testing.T) {
	raw := []byte(`{"a":1,"model":"m","b":2}`)
	req, err := messages.Inspect(raw, 0)
	require.NoError(t, err)
	req.SetModel("other")
	body := req.NewBody()
	raw[5], raw[len(raw)-2] = '7', '8' // not allowed outside of this test
	got, err := io.ReadAll(body)
	require.NoError(t, err)
	assert.Equal(t, `{"a":7,"model":"other","b":8}`, string(got))
}

func TestModelAliasesBody(t *testing.T) {
	raw := []byte(`{"model":"abc"}`)
	req, err := messages.Inspect(raw, 0)
	require.NoError(t, err)
	raw[10] = 'x'
	assert.Equal(t, "xbc", string(req.Model))
}

func TestSetModelKeepsTheDocument(t *testing.T) {
	raw := agentBody(t, 50_000)
	req, err := messages.Inspect(raw, 0)
	require.NoError(t, err)
	req.SetModel("other")
	var before, after map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(raw, &before))
	require.NoError(t, json.Unmarshal([]byte(sent(t, &req)), &after))
	assert.JSONEq(t, `"other"`, string(after["model"]))
	after["model"] = before["model"]
	assert.Equal(t, before, after)
}
