package simulator

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// model is an entry of GET /v1/models, as far as clients look at it.
type model struct {
	ID          string `json:"id"`
	Type        string `json:"type"`
	DisplayName string `json:"display_name"`
	CreatedAt   string `json:"created_at"`
	Lifecycle   string `json:"lifecycle"`
	Line        string `json:"line,omitempty"`
}

type modelPage struct {
	Data    []model `json:"data"`
	HasMore bool    `json:"has_more"`
	FirstID *string `json:"first_id"`
	LastID  *string `json:"last_id"`
}

// Page sizes: https://platform.claude.com/docs/en/api/overview.
const (
	defaultPage = 20
	maxPage     = 1000
)

// answersTo tells whether a model of this id is meant by name: the id itself, or
// the id without its date.
func answersTo(id, name string) bool {
	return id == name || canonical(id) == canonical(name) && (name == canonical(name) || strings.HasSuffix(name, "-latest"))
}

func describe(id string) model {
	words := strings.Split(canonical(id), "-")
	m := model{ID: id, Type: "model", CreatedAt: time.Unix(0, 0).UTC().Format(time.RFC3339), Lifecycle: "active"}
	if date, err := time.Parse("-20060102", dateSuffix.FindString(id)); err == nil {
		m.CreatedAt = date.Format(time.RFC3339)
	}
	for _, line := range []string{"haiku", "sonnet", "opus", "fable", "mythos"} {
		if slices.Contains(words, line) {
			m.Line = line
		}
	}
	for i, w := range words {
		if w != "" {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	m.DisplayName = strings.Join(words, " ")
	return m
}

// listModels pages by limit, and after_id or before_id.
func (x *exchange) listModels() {
	q := x.r.URL.Query()
	limit := defaultPage
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxPage {
			x.fail(http.StatusBadRequest, "limit: must be 1 to 1000")
			return
		}
		limit = n
	}
	from, to := 0, len(x.sim.models)
	after, before := q.Get("after_id"), q.Get("before_id")
	switch {
	case after != "" && before != "":
		x.fail(http.StatusBadRequest, "after_id, before_id: give only one of them")
		return
	case after != "":
		from = slices.Index(x.sim.models, after) + 1
	case before != "":
		to = slices.Index(x.sim.models, before)
	}
	if to < 0 || after != "" && from == 0 {
		x.fail(http.StatusBadRequest, "after_id, before_id: no such model")
		return
	}
	ids := x.sim.models[from:to]
	page := modelPage{Data: []model{}, HasMore: len(ids) > limit}
	if before != "" {
		ids = ids[max(len(ids)-limit, 0):]
	}
	for _, id := range ids[:min(limit, len(ids))] {
		page.Data = append(page.Data, describe(id))
	}
	if n := len(page.Data); n > 0 {
		page.FirstID, page.LastID = &page.Data[0].ID, &page.Data[n-1].ID
	}
	x.sendModels(page)
}

func (x *exchange) getModel(name string) {
	for _, id := range x.sim.models {
		if answersTo(id, name) {
			x.sendModels(describe(id))
			return
		}
	}
	x.fail(http.StatusNotFound, "model: "+name)
}

func (x *exchange) sendModels(v any) {
	body, err := json.Marshal(v)
	if err != nil { // strings and booleans cannot fail to encode
		panic(err)
	}
	x.sendJSON(body)
}
