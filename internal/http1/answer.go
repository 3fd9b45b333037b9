package http1

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// answer is the head of an answer, and the body that it announces.
type answer struct {
	http.Response
	body body
}

// parseAnswer reads the head of an answer to a request of this method, as
// [http.ReadResponse] does: a line may end without CR. It refuses more: versions
// other than 1.0 and 1.1, statuses below 100, folded lines, names with spaces, and
// chunks that have a content length too.
// head is changed: names get their canonical form.
func parseAnswer(head []byte, method string) (*answer, error) {
	end := bytes.IndexByte(head, '\n') + 1
	fields, err := canonicalize(head[end:])
	if err != nil {
		return nil, err
	}
	text := string(head) // the one copy: the values of all headers are parts of it
	a := &answer{}
	if err := a.parseStatus(strings.TrimSuffix(strings.TrimSuffix(text[:end], "\n"), "\r")); err != nil {
		return nil, err
	}
	a.Header = parseHeader(text[end:], fields)
	return a, a.frame(method)
}

func (a *answer) parseStatus(line string) error {
	proto, status, _ := strings.Cut(line, " ")
	status = strings.TrimLeft(status, " ")
	code, _, _ := strings.Cut(status, " ")
	n, err := strconv.ParseUint(code, 10, 16)
	if err != nil || len(code) != 3 || n < 100 || (proto != "HTTP/1.1" && proto != "HTTP/1.0") {
		return fmt.Errorf("http1: the answer begins with %.40q, which is not HTTP/1.1: check that the base URL's scheme and port are right", line)
	}
	a.Proto, a.Status, a.StatusCode = proto, status, int(n)
	a.ProtoMajor, a.ProtoMinor = 1, int(proto[len(proto)-1]-'0')
	return nil
}

// canonicalize checks header lines, writes their names in canonical form, and
// returns how many there are.
func canonicalize(block []byte) (int, error) {
	n := 0
	for ; len(block) > 0; n++ {
		end := bytes.IndexByte(block, '\n')
		name, value, ok := bytes.Cut(block[:end], []byte(":"))
		if !ok || !token(name) || !fieldValue(bytes.TrimSuffix(value, []byte("\r"))) {
			return 0, errors.New("http1: a header of the answer is malformed") // not quoted: it may hold anything
		}
		upper := true
		for i, c := range name {
			switch {
			case upper && 'a' <= c && c <= 'z':
				name[i] = c - 'a' + 'A'
			case !upper && 'A' <= c && c <= 'Z':
				name[i] = c - 'A' + 'a'
			}
			upper = c == '-'
		}
		block = block[end+1:]
	}
	return n, nil
}

// parseHeader takes lines that canonicalize has passed.
func parseHeader(text string, fields int) http.Header {
	h := make(http.Header, fields)
	values := make([]string, fields) // one for all, as most names come once
	for i := range fields {
		line, rest, _ := strings.Cut(text, "\n")
		name, value, _ := strings.Cut(line, ":")
		values[i] = strings.Trim(strings.TrimSuffix(value, "\r"), " \t")
		if h[name] == nil {
			h[name] = values[i : i+1 : i+1]
		} else {
			h[name] = append(h[name], values[i])
		}
		text = rest
	}
	return h
}

// frame finds out how long the body is and whether the connection lasts.
// Source: https://www.rfc-editor.org/rfc/rfc9112#section-6.3.
func (a *answer) frame(method string) error {
	a.Close = a.wantsClose()
	chunked, err := a.chunked()
	if err != nil {
		return err
	}
	length, err := a.length()
	if err != nil {
		return err
	}
	if chunked && length >= 0 { // whoever is between might have believed the other
		return errors.New("http1: the answer has both chunks and a content length")
	}
	a.ContentLength = length
	switch code := a.StatusCode; {
	case code == http.StatusSwitchingProtocols:
		a.body.kind, a.Close = untilClose, true
		a.ContentLength = 0
	case code < 200, code == http.StatusNoContent, code == http.StatusNotModified:
		if method != http.MethodHead {
			a.ContentLength = 0
		}
		a.Body = http.NoBody
	case method == http.MethodHead:
		a.Body = http.NoBody
	case chunked:
		a.body.kind, a.ContentLength = inChunks, -1
	case length == 0:
		a.Body = http.NoBody
	case length > 0:
		a.body.kind, a.body.left = fixed, uint64(length)
	default:
		a.body.kind, a.Close = untilClose, true
	}
	return nil
}

// wantsClose reports whether the connection ends with this answer.
func (a *answer) wantsClose() bool {
	says := a.Header["Connection"]
	if a.ProtoMinor == 0 {
		return hasToken(says, "close") || !hasToken(says, "keep-alive")
	}
	if !hasToken(says, "close") {
		return false
	}
	delete(a.Header, "Connection")
	return true
}

func hasToken(values []string, want string) bool {
	for _, v := range values {
		for one := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(one, " \t"), want) {
				return true
			}
		}
	}
	return false
}

func (a *answer) chunked() (bool, error) {
	codings, ok := a.Header["Transfer-Encoding"]
	delete(a.Header, "Transfer-Encoding")
	if !ok || a.ProtoMinor == 0 {
		return false, nil
	}
	if len(codings) != 1 || !strings.EqualFold(codings[0], "chunked") {
		return false, errors.New("http1: the answer has a transfer encoding other than chunked")
	}
	a.TransferEncoding = []string{"chunked"}
	return true, nil
}

// length is the content length, -1 without one. Several must agree.
func (a *answer) length() (int64, error) {
	values := a.Header["Content-Length"]
	if len(values) == 0 {
		return -1, nil
	}
	for _, v := range values[1:] {
		if v != values[0] {
			return 0, errors.New("http1: the answer has two content lengths")
		}
	}
	n, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil {
		return 0, errors.New("http1: the answer's content length is not a number")
	}
	a.Header["Content-Length"] = values[:1]
	return int64(n), nil
}
