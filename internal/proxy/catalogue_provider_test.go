package proxy_test

import "testing"

// providerFaults are the rows of what providers and the network do.
var providerFaults = []row{
	{"U01", testProvidersThatCannotBeReached},
	{"U02", testProvidersThatNeverAnswer},
	{"U03", testRefusedKeys},
	{"U04", testForbidden},
	{"U05", each(testSpentKeys, testSpentKeysAreTriedByWhatCosts)},
	{"U06", each(testCoolDowns, testGuessedCoolDowns, testTheWaitIsForWhoHasRoomFirst, testLimitedKeysAreLeftAtOnce, wireTroublesOf("U06"))},
	{"U07", testEveryKeyIsLimited},
	{"U08", testEverythingFails},
	{"U09", testClientErrors},
	{"U10", testRedirects},
	{"U11", each(testFailuresBeforeContent, wireTroublesOf("U11"))},
	{"U12", each(testErrorEvents, streamsThatBreak("U12"))},
	{"U13", each(testCutsAtEveryByte, streamsThatBreak("U13"))},
	{"U14", each(streamsThatBreak("U14"), wireTroublesOf("U14"))},
	{"U15", each(testUsageOfACutEnd, streamsThatBreak("U15"))},
	{"U16", each(testTheEndIsMessageStop, streamsThatBreak("U16"))},
	{"U17", each(testStreamsThatStall, testPings)},
	{"U18", each(testStreamsPassByteForByte, testStreamsPassByteForByteOverTheWire, testOddStreamsPassByteForByte)},
	{"U19", each(testLongFramesTakeNoMemory, streamsThatBreak("U19"))},
	{"U20", streamsThatBreak("U20")},
	{"U21", each(testAbsurdClaims, testOddUsage)},
	{"U22", wireTroublesOf("U22")},
	{"U23", each(testBytesBehindAnAnswer, wireTroublesOf("U23"))},
	{"U24", each(testEndlessAnswers, wireTroublesOf("U24"))},
	{"U25", testResponseHeaders},
	{"U26", each(testEarlyAnswers, testEarlyAnswersAndAReset, wireTroublesOf("U26"))},
	{"U27", testHTTP2ServersThatGoAway},
	{"U28", testHTTP2Failures},
	{"U29", testKeptConnectionsThatWereClosed},
	{"U30", each(testSecretsInErrorBodies, wireTroublesOf("U30"))},
	{"U31", each(testAnswersOfTheOtherKind, wireTroublesOf("U31"))},
	{"U32", testUnknownModels},
	{"N02", testAProviderOutOfReach}, // N01 is in e2e
	{"N03", testAClientOutOfReach},
	{"N04", testNameServers},
	{"N05", testQuietStreams},
	{"N06", testTinySegments},
	{"N07", testNoMoreConnections},
	{"N08", testManyResetsAtOnce},
}

// each is a row whose tests are several.
func each(tests ...func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		for i, test := range tests {
			t.Run(itoa(i+1), test)
		}
	}
}
