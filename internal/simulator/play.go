package simulator

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"

	"cc-relay/internal/messages"
)

// playFault gives the whole answer of a fault that answers by itself.
func (x *exchange) playFault() {
	f := x.fault
	x.sim.note(func() { x.rec.Fault = f.Kind })
	if !x.wait(f.Delay) {
		return
	}
	h := x.w.Header()
	switch f.Kind {
	case FaultReset:
		x.hangUp(f.RST)
	case FaultDeadKey:
		x.faultHeaders()
		x.fail(http.StatusUnauthorized, "invalid API key")
	case FaultEmpty:
		x.faultHeaders()
		x.send(http.StatusOK, nil)
	case FaultRedirect:
		h.Set("Location", f.Location)
		x.faultHeaders()
		x.send(f.status(), nil)
	case FaultHTML:
		h.Set("Content-Type", "text/html; charset=utf-8")
		x.faultHeaders()
		x.send(f.status(), f.page())
	case FaultStatus:
		if f.Status != http.StatusUnauthorized {
			x.identify()
		}
		h.Set("Content-Type", "application/json")
		x.faultHeaders()
		x.send(f.Status, f.errorBody(x.id))
	}
}

func (x *exchange) faultHeaders() {
	for name, value := range x.fault.Headers {
		x.w.Header().Set(name, value)
	}
}

// spoil plays the fault of a stream before its event number n, from 0; it reports
// whether the stream goes on.
func (x *exchange) spoil(n int, frame []byte) bool {
	f := x.fault
	if f == nil || n != f.AfterEvents {
		return true
	}
	switch f.Kind {
	case FaultCut:
		if f.MidFrame {
			frame = frame[:len(frame)/2]
		} else {
			frame = nil
		}
		if x.emit(frame) {
			x.hangUp(f.RST)
		}
		return false
	case FaultStall:
		return x.emit(nil) && x.stall()
	case FaultErrorEvent:
		x.emit(messages.AppendErrorEvent(nil, f.errorType(), f.message(), x.id))
		return false
	case FaultMalformed:
		return x.emit([]byte("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\n\n"))
	case FaultNoStop:
		return n == 0 // then it waits for message_stop
	}
	return true
}

// spoilJSON plays the fault of an answer that is not a stream; it reports whether
// the body is still to be sent as usual.
func (x *exchange) spoilJSON(body []byte) bool {
	f := x.fault
	if f == nil {
		return true
	}
	switch f.Kind {
	case FaultCut:
		x.declare(len(body))
		if x.emit(body[:min(f.AfterBytes, len(body))]) {
			x.hangUp(f.RST)
		}
	case FaultStall:
		x.declare(len(body))
		at := min(f.AfterBytes, len(body))
		if x.emit(body[:at]) && x.stall() {
			x.emit(body[at:])
		}
	case FaultErrorEvent:
		x.sendJSON(f.errorBody(x.id))
	case FaultMalformed:
		x.sendJSON(body[:len(body)/2])
	case FaultNoStop:
		x.declare(-1)
		x.emit(body[:len(body)/2])
	default:
		return true
	}
	return false
}

// stall is silent for the fault's duration, or until the client leaves.
func (x *exchange) stall() bool {
	if x.fault.Duration > 0 {
		return x.wait(x.fault.Duration)
	}
	<-x.r.Context().Done()
	return x.wait(0)
}

// hangUp breaks the connection. Without a TCP connection at hand (HTTP/2, a test
// without a network) a reset is an ordinary abort.
func (x *exchange) hangUp(rst bool) {
	if !rst {
		panic(http.ErrAbortHandler)
	}
	conn, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = wrapped.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // makes Close send RST
	}
	_ = conn.Close()
}

func (f *Fault) errorType() messages.ErrorType {
	switch {
	case f.ErrorType != "":
		return f.ErrorType
	case f.Kind == FaultErrorEvent:
		return messages.Overloaded
	}
	return messages.TypeOfStatus(f.Status)
}

func (f *Fault) message() string {
	if f.Message != "" {
		return f.Message
	}
	return "scripted fault: " + string(f.errorType())
}

// errorBody is Body, or the API's error body with what the fault says of it.
func (f *Fault) errorBody(requestID string) []byte {
	if f.Body != "" {
		return []byte(f.Body)
	}
	e := messages.Error{Type: "error", RequestID: requestID}
	e.Error = messages.ErrorDetail{Type: f.errorType(), Message: f.message()}
	if f.ErrorCode != "" {
		e.Error.Details = &messages.ErrorDetails{ErrorCode: f.ErrorCode}
	}
	body, err := json.Marshal(e)
	if err != nil { // strings cannot fail to encode
		panic(err)
	}
	return body
}

func (f *Fault) page() []byte {
	if f.Body != "" {
		return []byte(f.Body)
	}
	title := fmt.Sprintf("%d %s", f.status(), http.StatusText(f.status()))
	return fmt.Appendf(nil, "<!DOCTYPE html>\n<html><head><title>%s</title></head>\n<body><h1>%s</h1></body></html>\n", title, title)
}
