package admin

import (
	"net/http"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"time"
)

// maxProfile bounds ?seconds= of the profile and the trace.
const maxProfile = 120

// pprof serves what net/http/pprof serves under the same paths, but for the command
// line and symbols. That package would register itself for every listener of the
// process that uses the default mux.
func (h *Handler) pprof(c *call) {
	if !h.offered(c, h.cfg.Pprof) {
		return
	}
	seconds, ok := h.seconds(c)
	if !ok {
		return
	}
	_ = c.rc.SetWriteDeadline(time.Now().Add(seconds + actTimeout))
	c.w.Header().Set("Content-Type", "application/octet-stream")
	switch name := c.vars["profile"]; name {
	case "profile":
		h.during(c, seconds, pprof.StartCPUProfile(c.w), pprof.StopCPUProfile)
	case "trace":
		h.during(c, seconds, trace.Start(c.w), trace.Stop)
	default:
		h.profile(c, pprof.Lookup(name))
	}
}

// during waits for what has been started, unless it could not be.
func (h *Handler) during(c *call, d time.Duration, failed error, stop func()) {
	if failed != nil {
		h.refuse(c, http.StatusConflict, "unavailable", "it cannot be started now, perhaps because one is under way: "+failed.Error())
		return
	}
	defer stop()
	select {
	case <-time.After(d):
	case <-c.r.Context().Done():
	}
}

func (h *Handler) profile(c *call, p *pprof.Profile) {
	if p == nil {
		h.refuse(c, http.StatusNotFound, "not_found", "there are profile, trace, goroutine, heap, allocs, threadcreate, block and mutex")
		return
	}
	debug, _ := strconv.Atoi(c.r.URL.Query().Get("debug"))
	if debug != 0 {
		c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	_ = p.WriteTo(c.w, debug) // a client that left is not told
}

func (h *Handler) seconds(c *call) (time.Duration, bool) {
	text := c.r.URL.Query().Get("seconds")
	if text == "" {
		return 30 * time.Second, true
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxProfile {
		h.refuse(c, http.StatusBadRequest, "invalid_request", "seconds is not a number from 1 to 120")
		return 0, false
	}
	return time.Duration(n) * time.Second, true
}
