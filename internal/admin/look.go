package admin

import (
	_ "embed" // the API's document
	"io"
	"net/http"
	"strconv"
	"time"
)

// Bounds of GET /api/v1/requests.
const (
	defaultRequests = 50
	maxRequests     = 1000
)

func (h *Handler) live(c *call) {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(c.w, "ok\n")
}

func (h *Handler) stats(c *call)     { h.answer(c, http.StatusOK, h.look()) }
func (h *Handler) status(c *call)    { h.answer(c, http.StatusOK, h.judge(h.lookAtProviders())) }
func (h *Handler) keys(c *call)      { h.answer(c, http.StatusOK, Keys{h.lookAtKeys()}) }
func (h *Handler) providers(c *call) { h.answer(c, http.StatusOK, Providers{h.lookAtProviders()}) }

func (h *Handler) requests(c *call) {
	if !h.offered(c, h.relay.Requests != nil) {
		return
	}
	limit := defaultRequests
	if text := c.r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxRequests {
			h.refuse(c, http.StatusBadRequest, "invalid_request", "limit is not a number from 1 to 1000")
			return
		}
		limit = n
	}
	h.answer(c, http.StatusOK, Requests{h.relay.Requests(limit)})
}

func (h *Handler) request(c *call) {
	if !h.offered(c, h.relay.Explain != nil) {
		return
	}
	told, ok := h.relay.Explain(c.vars["id"])
	if !ok {
		h.refuse(c, http.StatusNotFound, "not_found", "this request is not known any more, or never was; only the latest are kept, see GET /api/v1/requests; of what the relay itself refused only its log tells")
		return
	}
	h.answer(c, http.StatusOK, told)
}

func (h *Handler) explain(c *call) {
	var body DryRunRequest
	if !h.offered(c, h.relay.DryRun != nil) || !h.body(c, &body) {
		return
	}
	if body.Model == "" || len(body.Model) > 200 || body.Tokens < 0 || body.MaxTokens < 0 {
		h.refuse(c, http.StatusBadRequest, "invalid_request", "model must be a model's name, tokens and max_tokens no less than 0")
		return
	}
	told, err := h.relay.DryRun(c.r.Context(), body)
	if err != nil {
		h.refuse(c, http.StatusBadRequest, "invalid_request", err.Error())
		return
	}
	h.answer(c, http.StatusOK, told)
}

func (h *Handler) config(c *call) {
	if !h.offered(c, h.relay.Config != nil) {
		return
	}
	text, err := h.relay.Config()
	if err != nil {
		h.refuse(c, http.StatusInternalServerError, "failed", "the configuration in force cannot be shown: "+err.Error())
		return
	}
	h.answer(c, http.StatusOK, ConfigText{Format: "yaml", Text: string(text)})
}

func (h *Handler) configDiff(c *call) {
	if !h.offered(c, h.relay.ConfigDiff != nil) || !h.body(c, &struct{}{}) {
		return
	}
	diff, err := h.relay.ConfigDiff(c.r.Context())
	if err != nil {
		h.refuse(c, http.StatusUnprocessableEntity, "failed", "the configuration cannot be compared: "+err.Error())
		return
	}
	diff.Changed, diff.NeedsRestart = filled(diff.Changed), filled(diff.NeedsRestart)
	h.answer(c, http.StatusOK, diff)
}

//go:embed openapi.json
var openAPI []byte

func (h *Handler) document(c *call) {
	c.w.Header().Set("Content-Type", "application/json")
	_, _ = c.w.Write(openAPI)
}

func (h *Handler) metrics(c *call) {
	if !h.offered(c, h.relay.Metrics != nil) {
		return
	}
	// What collects may take its time, and a scraper its own.
	_ = c.rc.SetWriteDeadline(time.Now().Add(actTimeout))
	r := c.r.Clone(c.r.Context())
	r.Header.Del("Authorization")
	h.relay.Metrics.ServeHTTP(c.w, r)
}
